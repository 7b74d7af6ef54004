//! Values of every physical and logical type of Parquet, against text that is computed apart.

use std::sync::Arc;

use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type, Int64Type, Int96, Int96Type,
};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;

use super::*;

/// A type, its column's declaration, a random value as it is stored, and the text that it is, computed here by hand.
struct ColumnKind {
    declaration: &'static str,
    write: fn(&mut SerializedColumnWriter<'_>, &[u64]),
    text: fn(u64) -> String,
}

fn fixed(bytes: &[u8]) -> FixedLenByteArray {
    FixedLenByteArray::from(bytes.to_vec())
}

macro_rules! write {
    ($physical:ty, $value:expr) => {
        |writer, seeds| {
            let value = $value;
            let values: Vec<_> = seeds.iter().map(|&seed| value(seed)).collect();
            writer.typed::<$physical>().write_batch(&values, None, None).unwrap();
        }
    };
}

/// `number` over ten to the power of `scale`, by padding its digits.
fn by_hand(number: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") }
}

/// The day `days` after 1970-01-01, by counting years and months.
fn day_by_hand(days: i64) -> String {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut rest) = (1970 + days.div_euclid(146_097) * 400, days.rem_euclid(146_097));
    while rest >= 365 + i64::from(leap(year)) {
        rest -= 365 + i64::from(leap(year));
        year += 1;
    }
    let months = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= months[month] {
        rest -= months[month];
        month += 1;
    }
    // ISO 8601: a sign and four digits or more outside the years 0 to 9999.
    let year = if (0..10_000).contains(&year) { format!("{year:04}") } else { format!("{year:+05}") };
    format!("{year}-{:02}-{:02}", month + 1, rest + 1)
}

fn time_by_hand(value: i64, per_second: i64) -> String {
    let (seconds, part) = (value / per_second, value % per_second);
    let width = per_second.ilog10() as usize;
    format!("{:02}:{:02}:{:02}.{part:0width$}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn moment_by_hand(value: i64, per_second: i64, zone: &str) -> String {
    let day = per_second * 86_400;
    let (days, rest) = (value.div_euclid(day), value.rem_euclid(day));
    format!("{}T{}{zone}", day_by_hand(days), time_by_hand(rest, per_second))
}

/// Of all sizes and both signs.
fn spread(seed: u64) -> i64 {
    (seed.cast_signed()) >> (seed % 61)
}

fn millis(seed: u64) -> i64 {
    spread(seed) % 60_000_000_000_000
}

fn kinds() -> Vec<ColumnKind> {
    [numbers(), moments(), others()].into_iter().flatten().collect()
}

/// Whole numbers of every width, by both of the format's names.
fn numbers() -> Vec<ColumnKind> {
    let kind = |declaration, write, text| ColumnKind { declaration, write, text };
    vec![
        kind("INT32 x (INT_8)", write!(Int32Type, |s| i32::from(s as i8)), |s| (s as i8).to_string()),
        kind("INT32 x (INT_16)", write!(Int32Type, |s| i32::from(s as i16)), |s| (s as i16).to_string()),
        kind("INT32 x (INTEGER(16,true))", write!(Int32Type, |s| i32::from(s as i16)), |s| {
            (s as i16).to_string()
        }),
        kind("INT32 x (INT_32)", write!(Int32Type, |s| s as i32), |s| (s as i32).to_string()),
        kind("INT32 x (INTEGER(32,true))", write!(Int32Type, |s| s as i32), |s| (s as i32).to_string()),
        kind("INT32 x (UINT_8)", write!(Int32Type, |s| i32::from(s as u8)), |s| (s as u8).to_string()),
        kind("INT32 x (INTEGER(8,false))", write!(Int32Type, |s| i32::from(s as u8)), |s| {
            (s as u8).to_string()
        }),
        kind("INT32 x (UINT_16)", write!(Int32Type, |s| i32::from(s as u16)), |s| (s as u16).to_string()),
        kind("INT64 x (INT_64)", write!(Int64Type, |s: u64| s.cast_signed()), |s| {
            s.cast_signed().to_string()
        }),
        kind("INT64 x (INTEGER(64,true))", write!(Int64Type, |s: u64| s.cast_signed()), |s| {
            s.cast_signed().to_string()
        }),
        kind(
            "FIXED_LEN_BYTE_ARRAY (5) x (DECIMAL(11,3))",
            write!(FixedLenByteArrayType, |s| fixed(&(spread(s) % 100_000_000_000).to_be_bytes()[3..])),
            |s| by_hand(i128::from(spread(s) % 100_000_000_000), 3),
        ),
        kind(
            "BYTE_ARRAY x (DECIMAL(20,7))",
            write!(ByteArrayType, |s| ByteArray::from(spread(s).to_be_bytes().to_vec())),
            |s| by_hand(i128::from(spread(s)), 7),
        ),
    ]
}

/// Times and timestamps of every unit, with and without a time zone, by both of the format's names.
fn moments() -> Vec<ColumnKind> {
    let kind = |declaration, write, text| ColumnKind { declaration, write, text };
    let day_of_millis = |s: u64| time_by_hand((s % 86_400_000) as i64, 1000);
    vec![
        kind("INT32 x (TIME_MILLIS)", write!(Int32Type, |s| (s % 86_400_000) as i32), day_of_millis),
        kind("INT32 x (TIME(MILLIS,false))", write!(Int32Type, |s| (s % 86_400_000) as i32), day_of_millis),
        kind("INT64 x (TIME_MICROS)", write!(Int64Type, |s| (s % 86_400_000_000) as i64), |s| {
            time_by_hand((s % 86_400_000_000) as i64, 1_000_000)
        }),
        kind("INT64 x (TIME(MICROS,true))", write!(Int64Type, |s| (s % 86_400_000_000) as i64), |s| {
            time_by_hand((s % 86_400_000_000) as i64, 1_000_000)
        }),
        kind("INT64 x (TIME(NANOS,false))", write!(Int64Type, |s| (s % 86_400_000_000_000) as i64), |s| {
            time_by_hand((s % 86_400_000_000_000) as i64, 1_000_000_000)
        }),
        kind("INT64 x (TIMESTAMP_MICROS)", write!(Int64Type, |s| millis(s) * 1000 + 3), |s| {
            moment_by_hand(millis(s) * 1000 + 3, 1_000_000, "Z")
        }),
        kind("INT64 x (TIMESTAMP(MICROS,true))", write!(Int64Type, |s| millis(s) * 1000 + 5), |s| {
            moment_by_hand(millis(s) * 1000 + 5, 1_000_000, "Z")
        }),
        kind("INT64 x (TIMESTAMP(MILLIS,false))", write!(Int64Type, millis), |s| {
            moment_by_hand(millis(s), 1000, "")
        }),
        kind("INT64 x (TIMESTAMP(NANOS,false))", write!(Int64Type, spread), |s| {
            moment_by_hand(spread(s), 1_000_000_000, "")
        }),
    ]
}

fn others() -> Vec<ColumnKind> {
    let kind = |declaration, write, text| ColumnKind { declaration, write, text };
    vec![
        kind("BOOLEAN x", write!(BoolType, |seed: u64| seed % 2 == 1), |s| (s % 2 == 1).to_string()),
        kind("INT32 x", write!(Int32Type, |s| spread(s) as i32), |s| (spread(s) as i32).to_string()),
        kind("INT32 x (INTEGER(8,true))", write!(Int32Type, |s| i32::from(s as i8)), |s| {
            (s as i8).to_string()
        }),
        kind("INT32 x (INTEGER(16,false))", write!(Int32Type, |s| i32::from(s as u16)), |s| {
            (s as u16).to_string()
        }),
        kind("INT32 x (INTEGER(32,false))", write!(Int32Type, |s| s as i32), |s| (s as u32).to_string()),
        kind("INT32 x (UINT_32)", write!(Int32Type, |s| s as i32), |s| (s as u32).to_string()),
        kind("INT64 x", write!(Int64Type, spread), |s| spread(s).to_string()),
        kind("INT64 x (INTEGER(64,false))", write!(Int64Type, |s: u64| s.cast_signed()), |s| s.to_string()),
        kind("INT64 x (UINT_64)", write!(Int64Type, |s: u64| s.cast_signed()), |s| s.to_string()),
        kind("INT32 x (DECIMAL(9,2))", write!(Int32Type, |s| (spread(s) % 1_000_000_000) as i32), |s| {
            by_hand(i128::from(spread(s) % 1_000_000_000), 2)
        }),
        kind("INT64 x (DECIMAL(18,18))", write!(Int64Type, |s| spread(s) % 1_000_000_000_000_000_000), |s| {
            by_hand(i128::from(spread(s) % 1_000_000_000_000_000_000), 18)
        }),
        kind(
            "FIXED_LEN_BYTE_ARRAY (16) x (DECIMAL(38,10))",
            write!(FixedLenByteArrayType, |s| fixed(&(i128::from(spread(s)) * 1_000_003).to_be_bytes())),
            |s| by_hand(i128::from(spread(s)) * 1_000_003, 10),
        ),
        kind(
            "BYTE_ARRAY x (DECIMAL(20,0))",
            write!(ByteArrayType, |s| {
                // As short as the number allows, as writers store it.
                let bytes = spread(s).to_be_bytes();
                let sign = if spread(s) < 0 { 0xff } else { 0 };
                let same = |at: usize| bytes[at] == sign && (bytes[at + 1] ^ sign) & 0x80 == 0;
                let skip = (0..7).take_while(|&at| same(at)).count();
                ByteArray::from(bytes[skip..].to_vec())
            }),
            |s| spread(s).to_string(),
        ),
        kind("INT32 x (DATE)", write!(Int32Type, |s| (spread(s) % 3_000_000) as i32), |s| {
            day_by_hand(spread(s) % 3_000_000)
        }),
        kind("INT32 x (TIME(MILLIS,true))", write!(Int32Type, |s| (s % 86_400_000) as i32), |s| {
            time_by_hand((s % 86_400_000) as i64, 1000)
        }),
        kind("INT64 x (TIME(MICROS,false))", write!(Int64Type, |s| (s % 86_400_000_000) as i64), |s| {
            time_by_hand((s % 86_400_000_000) as i64, 1_000_000)
        }),
        kind("INT64 x (TIME(NANOS,true))", write!(Int64Type, |s| (s % 86_400_000_000_000) as i64), |s| {
            time_by_hand((s % 86_400_000_000_000) as i64, 1_000_000_000)
        }),
        kind("INT64 x (TIMESTAMP(MILLIS,true))", write!(Int64Type, millis), |s| {
            moment_by_hand(millis(s), 1000, "Z")
        }),
        kind("INT64 x (TIMESTAMP_MILLIS)", write!(Int64Type, millis), |s| {
            moment_by_hand(millis(s), 1000, "Z")
        }),
        kind("INT64 x (TIMESTAMP(MICROS,false))", write!(Int64Type, |s| millis(s) * 1000 + 7), |s| {
            moment_by_hand(millis(s) * 1000 + 7, 1_000_000, "")
        }),
        kind("INT64 x (TIMESTAMP(NANOS,true))", write!(Int64Type, spread), |s| {
            moment_by_hand(spread(s), 1_000_000_000, "Z")
        }),
        kind(
            "INT96 x",
            write!(Int96Type, |s| {
                let mut value = Int96::new();
                let nanos = s % 86_400_000_000_000;
                value.set_data(nanos as u32, (nanos >> 32) as u32, 2_440_588 + (s >> 50) as u32);
                value
            }),
            |s| {
                let clock = time_by_hand((s % 86_400_000_000_000) as i64, 1_000_000_000);
                format!("{}T{clock}", day_by_hand((s >> 50) as i64))
            },
        ),
        kind("FLOAT x", write!(FloatType, |s| spread(s) as f32 / 8.0), |s| {
            format!("{:?}", spread(s) as f32 / 8.0)
        }),
        kind("DOUBLE x", write!(DoubleType, |s| spread(s) as f64 / 1024.0), |s| {
            format!("{:?}", spread(s) as f64 / 1024.0)
        }),
        kind(
            "FIXED_LEN_BYTE_ARRAY (2) x (FLOAT16)",
            write!(FixedLenByteArrayType, |s| {
                // 1.0 to 2.0 in steps of 2^-10: sign 0, exponent 15.
                fixed(&(0x3c00 + (s % 1024) as u16).to_le_bytes())
            }),
            |s| format!("{:?}", 1.0 + (s % 1024) as f64 / 1024.0),
        ),
        kind(
            "FIXED_LEN_BYTE_ARRAY (16) x (UUID)",
            write!(FixedLenByteArrayType, |s| fixed(&(u128::from(s) * 0x1_0000_0001).to_be_bytes())),
            |s| {
                let hex = format!("{:032x}", u128::from(s) * 0x1_0000_0001);
                format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
            },
        ),
        kind(
            "BYTE_ARRAY x",
            write!(ByteArrayType, |s| ByteArray::from(format!("ü{s}").into_bytes())),
            |s| format!("ü{s}"),
        ),
        kind(
            "BYTE_ARRAY x (STRING)",
            write!(ByteArrayType, |s| ByteArray::from(format!("s{s}").into_bytes())),
            |s| format!("s{s}"),
        ),
        kind(
            "BYTE_ARRAY x (ENUM)",
            write!(ByteArrayType, |s| ByteArray::from(format!("E{}", s % 3).into_bytes())),
            |s| format!("E{}", s % 3),
        ),
        kind(
            "BYTE_ARRAY x (JSON)",
            write!(ByteArrayType, |s| ByteArray::from(format!("[{s}]").into_bytes())),
            |s| format!("[{s}]"),
        ),
    ]
}

fn one_column(
    folder: &Folder,
    declaration: &str,
    write: impl Fn(&mut SerializedColumnWriter<'_>),
    rows: usize,
) -> PathBuf {
    let message = format!("message m {{ REQUIRED BYTE_ARRAY text (STRING); REQUIRED {declaration}; }}");
    let schema = Arc::new(parse_message_type(&message).unwrap_or_else(|error| panic!("{message}: {error}")));
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts = vec![ByteArray::from("t"); rows];
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    write(&mut column);
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    folder.file("types.parquet", &bytes)
}

/// A file with a text column, another column or group, and no row group.
fn no_rows(folder: &Folder, declaration: &str) -> PathBuf {
    let end = if declaration.ends_with('}') { "" } else { ";" };
    let message = format!("message m {{ REQUIRED BYTE_ARRAY text (STRING); REQUIRED {declaration}{end} }}");
    let schema = Arc::new(parse_message_type(&message).unwrap_or_else(|error| panic!("{message}: {error}")));
    let mut bytes = Vec::new();
    SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap().close().unwrap();
    folder.file("types.parquet", &bytes)
}

/// Every physical type with every logical one, 400 values each, against text that is computed apart.
#[test]
fn values_of_all_types_are_what_the_format_says() {
    let folder = Folder::new();
    let fields = Fields { id: Some("x".to_owned()), ..Fields::default() };
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut values = 0;
    for kind in kinds() {
        let seeds: Vec<u64> = (0..400)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            })
            .collect();
        let path = one_column(&folder, kind.declaration, |column| (kind.write)(column, &seeds), seeds.len());
        let before = values;
        for (step, &seed) in read(&path, &fields).iter().zip(&seeds) {
            let Entry::Record(record) = step else { panic!("{}: {step:?}", kind.declaration) };
            assert_eq!(
                record.id.as_deref(),
                Some((kind.text)(seed).as_str()),
                "{} of {seed}",
                kind.declaration
            );
            values += 1;
        }
        assert_eq!(values - before, seeds.len(), "{}: every value is read", kind.declaration);
    }
    assert!(values >= 10_000, "{values}");
    for (declaration, name) in [
        ("BYTE_ARRAY x (BSON)", "BSON"),
        ("FIXED_LEN_BYTE_ARRAY (12) x (INTERVAL)", "INTERVAL"),
        ("FIXED_LEN_BYTE_ARRAY (5) x", "fixed length"),
    ] {
        let path = one_column(&folder, declaration, |_| {}, 0);
        let error = sources::open(&path, Format::Parquet, &fields, 0).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("column `x`"), "{error}");
    }
    for (declaration, name) in [
        ("BYTE_ARRAY x (GEOMETRY)", "GEOMETRY"),
        ("BYTE_ARRAY x (GEOGRAPHY)", "GEOGRAPHY"),
        ("group x (VARIANT) { REQUIRED BYTE_ARRAY metadata; REQUIRED BYTE_ARRAY value; }", "a VARIANT"),
        ("group x (FILE) { OPTIONAL BYTE_ARRAY uri (STRING); }", "a FILE; name one of its fields: `x.uri`"),
        ("group x (LIST) { REPEATED group list { OPTIONAL INT32 element; } }", "a list"),
        ("group x (MAP) { REPEATED group key_value { REQUIRED INT32 key; OPTIONAL INT32 value; } }", "a map"),
        ("group x { REQUIRED INT32 a; }", "a struct; name one of its fields: `x.a`"),
    ] {
        let path = no_rows(&folder, declaration);
        let error = sources::open(&path, Format::Parquet, &fields, 0).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("column `x`"), "{declaration}: {error}");
    }
    // The parts of a variant are no values, whatever they are called; those of a file are.
    let variant = "group v (VARIANT) { REQUIRED BYTE_ARRAY metadata; OPTIONAL BYTE_ARRAY value; \
                   OPTIONAL BYTE_ARRAY typed_value (STRING); }";
    for part in ["v.metadata", "v.value", "v.typed_value"] {
        let fields = Fields { id: Some(part.to_owned()), ..Fields::default() };
        let error = sources::open(&no_rows(&folder, variant), Format::Parquet, &fields, 0).err().unwrap();
        assert!(error.to_string().contains("a part of a VARIANT"), "{part}: {error}");
    }
    let file = "group f (FILE) { OPTIONAL BYTE_ARRAY uri (STRING); OPTIONAL INT64 offset; }";
    for part in ["f.uri", "f.offset"] {
        let fields = Fields { id: Some(part.to_owned()), ..Fields::default() };
        assert!(read(&no_rows(&folder, file), &fields).is_empty(), "{part}");
    }
    // A value that its type does not have is a bad record, and the next one is read.
    let write: fn(&mut SerializedColumnWriter<'_>, &[u64]) = write!(Int32Type, |value: u64| value as i32);
    let path =
        one_column(&folder, "INT32 x (TIME(MILLIS,true))", |column| write(column, &[86_400_000, 5]), 2);
    let steps = read(&path, &fields);
    assert!(
        matches!(&steps[0], Entry::Bad { found, .. } if found.contains("no time of a day")),
        "{:?}",
        steps[0]
    );
    assert!(matches!(&steps[1], Entry::Record(record) if record.id.as_deref() == Some("00:00:00.005")));
}

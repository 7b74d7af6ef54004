//! What a Parquet value is, by its logical type: the text that names a document or a set.
//!
//! A file stores eight physical types; what they mean stands beside them (LogicalTypes.md of the format, and the older
//! converted types, which files without logical types still have):
//!
//! | logical type | stored as | as a name |
//! |---|---|---|
//! | none | BOOLEAN, INT32, INT64, FLOAT, DOUBLE, BYTE_ARRAY | `true`, digits, the shortest decimal, the text |
//! | INTEGER(bits, signed or not) | INT32, INT64 | digits: `4294967295`, never `-1` |
//! | DECIMAL(precision, scale) | INT32, INT64, bytes, big-endian | `12.30`, with all digits of the scale |
//! | DATE | INT32, days since 1970 | `2024-02-29` |
//! | TIME(unit) | INT32, INT64 | `23:59:59.000001`, with the digits of the unit |
//! | TIMESTAMP(unit, UTC or not) | INT64; INT96 in old files | `2024-02-29T23:59:59.123Z`, without `Z` where local |
//! | STRING, ENUM, JSON | BYTE_ARRAY | the text |
//! | UUID, FLOAT16 | FIXED_LEN_BYTE_ARRAY | `00112233-4455-6677-8899-aabbccddeeff`, the number |
//! | UNKNOWN | any | always null |
//!
//! BSON, INTERVAL, VARIANT, GEOMETRY, GEOGRAPHY, FILE and fixed bytes that mean nothing are refused by name: they are
//! no names of anything, and their raw bytes would be taken for one.

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta};
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as PhysicalType};
use parquet::schema::types::ColumnDescriptor;

/// How a column's values become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// UTF-8 as it is.
    Text,
    /// `true`, `false`.
    Boolean,
    /// A signed number.
    Signed,
    /// The bits of an unsigned number.
    Unsigned,
    /// A binary floating-point number.
    Float,
    /// Two bytes of one, little-endian.
    Float16,
    /// An integer over ten to the power of this.
    Decimal(usize),
    /// Days since 1970.
    Date,
    /// Units since midnight.
    Time(Unit),
    /// Units since 1970; whether in UTC.
    Timestamp(Unit, bool),
    /// The INT96 of old writers: nanoseconds of the day, and the day's Julian number.
    Int96,
    /// Sixteen bytes.
    Uuid,
    /// Nothing but nulls.
    Null,
}

/// The unit of a time, by its decimal digits of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Millis = 3,
    Micros = 6,
    Nanos = 9,
}

impl Unit {
    fn of(unit: &TimeUnit) -> Self {
        match unit {
            TimeUnit::MILLIS => Self::Millis,
            TimeUnit::MICROS => Self::Micros,
            TimeUnit::NANOS => Self::Nanos,
        }
    }

    fn per_second(self) -> i64 {
        10_i64.pow(self as u32)
    }
}

/// A value as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored<'a> {
    Boolean(bool),
    Int32(i32),
    Int64(i64),
    Int96([u32; 3]),
    Float(f32),
    Double(f64),
    Bytes(&'a [u8]),
}

/// What `column` means, or why it names nothing.
///
/// # Errors
/// The name of a type that is refused.
pub(super) fn meaning(column: &ColumnDescriptor) -> Result<Meaning, String> {
    let physical = column.physical_type();
    let refused = |what: &str| Err(format!("values of type {what} ({physical})"));
    let meaning = match column.logical_type_ref() {
        None => return by_converted_type(column),
        Some(LogicalType::String | LogicalType::Enum | LogicalType::Json) => Meaning::Text,
        Some(LogicalType::Integer(integer)) if integer.is_signed => Meaning::Signed,
        Some(LogicalType::Integer(_)) => Meaning::Unsigned,
        Some(LogicalType::Decimal(decimal)) => match usize::try_from(decimal.scale) {
            Ok(scale) if scale <= 10_000 => Meaning::Decimal(scale),
            _ => return refused(&format!("DECIMAL with scale {}", decimal.scale)),
        },
        Some(LogicalType::Date) => Meaning::Date,
        Some(LogicalType::Time(time)) => Meaning::Time(Unit::of(&time.unit)),
        Some(LogicalType::Timestamp(time)) => {
            Meaning::Timestamp(Unit::of(&time.unit), time.is_adjusted_to_u_t_c)
        }
        Some(LogicalType::Uuid) => Meaning::Uuid,
        Some(LogicalType::Float16) => Meaning::Float16,
        Some(LogicalType::Unknown) => Meaning::Null,
        Some(LogicalType::Bson) => return refused("BSON"),
        Some(LogicalType::Variant(_)) => return refused("VARIANT"),
        Some(LogicalType::Geometry(_)) => return refused("GEOMETRY"),
        Some(LogicalType::Geography(_)) => return refused("GEOGRAPHY"),
        Some(other) => return refused(&format!("{other:?}")),
    };
    if fits(meaning, physical, column.type_length()) {
        Ok(meaning)
    } else {
        Err(format!("a logical type that is never stored as {physical} ({meaning:?})"))
    }
}

/// As [`meaning`], for files that were written before there were logical types.
fn by_converted_type(column: &ColumnDescriptor) -> Result<Meaning, String> {
    let physical = column.physical_type();
    let meaning = match column.converted_type() {
        ConvertedType::NONE => match physical {
            PhysicalType::BOOLEAN => Meaning::Boolean,
            PhysicalType::INT32 | PhysicalType::INT64 => Meaning::Signed,
            PhysicalType::INT96 => Meaning::Int96,
            PhysicalType::FLOAT | PhysicalType::DOUBLE => Meaning::Float,
            PhysicalType::BYTE_ARRAY => Meaning::Text,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => {
                return Err("bytes of fixed length, which do not say what they are".to_owned());
            }
        },
        ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON => Meaning::Text,
        ConvertedType::INT_8 | ConvertedType::INT_16 | ConvertedType::INT_32 | ConvertedType::INT_64 => {
            Meaning::Signed
        }
        ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64 => {
            Meaning::Unsigned
        }
        ConvertedType::DECIMAL => match usize::try_from(column.type_scale()) {
            Ok(scale) if scale <= 10_000 => Meaning::Decimal(scale),
            _ => return Err(format!("values of type DECIMAL with scale {}", column.type_scale())),
        },
        ConvertedType::DATE => Meaning::Date,
        ConvertedType::TIME_MILLIS => Meaning::Time(Unit::Millis),
        ConvertedType::TIME_MICROS => Meaning::Time(Unit::Micros),
        // The older types say that they are in UTC.
        ConvertedType::TIMESTAMP_MILLIS => Meaning::Timestamp(Unit::Millis, true),
        ConvertedType::TIMESTAMP_MICROS => Meaning::Timestamp(Unit::Micros, true),
        other => return Err(format!("values of type {other} ({physical})")),
    };
    if fits(meaning, physical, column.type_length()) {
        Ok(meaning)
    } else {
        Err(format!("a converted type that is never stored as {physical} ({meaning:?})"))
    }
}

fn fits(meaning: Meaning, physical: PhysicalType, length: i32) -> bool {
    use PhysicalType::{BOOLEAN, BYTE_ARRAY, DOUBLE, FIXED_LEN_BYTE_ARRAY, FLOAT, INT32, INT64, INT96};
    match meaning {
        Meaning::Text => physical == BYTE_ARRAY,
        Meaning::Boolean => physical == BOOLEAN,
        Meaning::Signed | Meaning::Unsigned => matches!(physical, INT32 | INT64),
        Meaning::Float => matches!(physical, FLOAT | DOUBLE),
        Meaning::Float16 => physical == FIXED_LEN_BYTE_ARRAY && length == 2,
        Meaning::Decimal(_) => matches!(physical, INT32 | INT64 | BYTE_ARRAY | FIXED_LEN_BYTE_ARRAY),
        Meaning::Date | Meaning::Time(Unit::Millis) => physical == INT32,
        Meaning::Time(_) | Meaning::Timestamp(..) => physical == INT64,
        Meaning::Int96 => physical == INT96,
        Meaning::Uuid => physical == FIXED_LEN_BYTE_ARRAY && length == 16,
        Meaning::Null => true,
    }
}

/// The text of a value.
///
/// # Errors
/// What is wrong with a value that its type does not allow: a time of 25 hours, bytes that are not UTF-8.
pub(super) fn text(meaning: Meaning, stored: Stored<'_>) -> Result<String, String> {
    match (meaning, stored) {
        (Meaning::Boolean, Stored::Boolean(value)) => Ok(value.to_string()),
        (Meaning::Signed, Stored::Int32(value)) => Ok(value.to_string()),
        (Meaning::Signed, Stored::Int64(value)) => Ok(value.to_string()),
        (Meaning::Unsigned, Stored::Int32(value)) => Ok(value.cast_unsigned().to_string()),
        (Meaning::Unsigned, Stored::Int64(value)) => Ok(value.cast_unsigned().to_string()),
        (Meaning::Float, Stored::Float(value)) => Ok(format!("{value:?}")),
        (Meaning::Float, Stored::Double(value)) => Ok(format!("{value:?}")),
        (Meaning::Float16, Stored::Bytes(&[low, high])) => {
            Ok(format!("{:?}", half::f16::from_le_bytes([low, high]).to_f64()))
        }
        (Meaning::Decimal(scale), Stored::Int32(value)) => Ok(decimal(&value.to_be_bytes(), scale)),
        (Meaning::Decimal(scale), Stored::Int64(value)) => Ok(decimal(&value.to_be_bytes(), scale)),
        (Meaning::Decimal(scale), Stored::Bytes(bytes)) if !bytes.is_empty() => Ok(decimal(bytes, scale)),
        (Meaning::Date, Stored::Int32(days)) => date(days),
        (Meaning::Time(unit), Stored::Int32(value)) => time(i64::from(value), unit),
        (Meaning::Time(unit), Stored::Int64(value)) => time(value, unit),
        (Meaning::Timestamp(unit, utc), Stored::Int64(value)) => timestamp(i128::from(value), unit, utc),
        (Meaning::Int96, Stored::Int96([low, high, day])) => {
            let nanos = u64::from(high) << 32 | u64::from(low);
            // The Julian day of 1970-01-01.
            let days = i128::from(day) - 2_440_588;
            timestamp(days * 86_400_000_000_000 + i128::from(nanos), Unit::Nanos, false)
        }
        (Meaning::Uuid, Stored::Bytes(bytes)) if bytes.len() == 16 => Ok(uuid(bytes)),
        (Meaning::Text, Stored::Bytes(bytes)) => std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to())),
        (meaning, stored) => Err(format!("{stored:?} where a value of {meaning:?} is expected")),
    }
}

fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The two's complement number of `bytes`, big-endian, over ten to the power of `scale`.
fn decimal(bytes: &[u8], scale: usize) -> String {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut magnitude: Vec<u8> = bytes.to_vec();
    if negative {
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            let (sum, overflow) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (sum, overflow);
        }
    }
    let mut digits = Vec::new();
    while magnitude.iter().any(|&byte| byte != 0) {
        let mut rest = 0u32;
        for byte in &mut magnitude {
            let value = rest << 8 | u32::from(*byte);
            // At most 255, as the rest is below ten.
            (*byte, rest) = ((value / 10) as u8, value % 10);
        }
        digits.push(char::from(b'0' + rest as u8));
    }
    while digits.len() <= scale {
        digits.push('0');
    }
    if scale > 0 {
        digits.insert(scale, '.');
    }
    if negative {
        digits.push('-');
    }
    digits.iter().rev().collect()
}

fn date(days: i32) -> Result<String, String> {
    NaiveDate::from_num_days_from_ce_opt(days.saturating_add(719_163))
        .map(|date| date.format("%Y-%m-%d").to_string())
        .ok_or_else(|| {
            format!("{days} days from 1970, which is beyond the years that a date can be written in")
        })
}

fn time(value: i64, unit: Unit) -> Result<String, String> {
    let wrong = || format!("{value} of 10^-{} s after midnight, which is no time of a day", unit as u32);
    let nanos = value.checked_mul(1_000_000_000 / unit.per_second()).filter(|&nanos| nanos >= 0);
    let nanos = nanos.filter(|&nanos| nanos < 86_400_000_000_000).ok_or_else(wrong)?;
    let (time, _) = NaiveTime::MIN.overflowing_add_signed(TimeDelta::nanoseconds(nanos));
    Ok(time.format(time_format(unit)).to_string())
}

fn time_format(unit: Unit) -> &'static str {
    match unit {
        Unit::Millis => "%H:%M:%S%.3f",
        Unit::Micros => "%H:%M:%S%.6f",
        Unit::Nanos => "%H:%M:%S%.9f",
    }
}

fn timestamp(value: i128, unit: Unit, utc: bool) -> Result<String, String> {
    let per_second = i128::from(unit.per_second());
    let (seconds, rest) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    let nanos = u32::try_from(rest * (1_000_000_000 / per_second)).unwrap_or(0);
    let moment = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, nanos));
    let moment = moment.ok_or_else(|| {
        format!(
            "{value} of 10^-{} s from 1970, which is beyond the years that a date can be written in",
            unit as u32
        )
    })?;
    let zone = if utc { "Z" } else { "" };
    Ok(format!("{}T{}{zone}", moment.format("%Y-%m-%d"), moment.format(time_format(unit))))
}

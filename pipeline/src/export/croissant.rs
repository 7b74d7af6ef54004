//! Croissant 1.1 (MLCommons): the split's files with their digests, the fields of its tables, its licenses
//! with who claims them, and what it was derived from (PROV-O).
//!
//! Terms are those of the specification's recommended context. What the manifest does not know (publisher,
//! date, page) comes from the command line or is left out; nothing is made up.

use serde_json::{Map, Value, json};
use xlstm_manifests::checksums::CHECKSUMS_NAME;
use xlstm_manifests::manifest::{Declared, Input, Layout, MANIFEST_NAME, Packing};
use xlstm_manifests::origin::{self, Origin};
use xlstm_manifests::{Manifest, Sha256Digest};

use super::ExportArgs;
use crate::report::CommandError;

const ARROW: &str = "application/vnd.apache.arrow.file";

/// The document for `manifest`.
pub(super) fn render(manifest: &Manifest, args: &ExportArgs) -> Result<String, CommandError> {
    let mut document = Map::new();
    let mut put = |key: &str, value: Value| {
        document.insert(key.to_owned(), value);
    };
    put("@context", context());
    put("@type", json!("sc:Dataset"));
    put("conformsTo", json!("http://mlcommons.org/croissant/1.1"));
    put("name", json!(name(manifest)));
    put("description", json!(description(manifest)));
    put("version", json!("1.0.0"));
    put("identifier", json!(format!("urn:sha256:{}", manifest.root)));
    let url = args.url.clone().or_else(|| commit_url(manifest));
    put("url", json!(url.unwrap_or_else(|| format!("urn:sha256:{}", manifest.root))));
    put("license", licences(manifest));
    if let Some(creator) = &args.creator {
        put("creator", json!({"@type": "sc:Organization", "name": creator}));
    }
    if let Some(date) = &args.date_published {
        put("datePublished", json!(date));
    }
    put("distribution", distribution(manifest)?);
    put("recordSet", record_sets(manifest));
    put("prov:wasDerivedFrom", derived_from(manifest));
    put("prov:wasGeneratedBy", generated_by(manifest));
    let text = serde_json::to_string_pretty(&Value::Object(document));
    Ok(text.map_err(|error| CommandError::Internal(error.to_string()))? + "\n")
}

fn context() -> Value {
    let mut context = json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "dct": "http://purl.org/dc/terms/",
        "prov": "http://www.w3.org/ns/prov#",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "description": {"@container": "@language"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
    });
    let terms = [
        "arrayShape",
        "citeAs",
        "column",
        "containedIn",
        "equivalentProperty",
        "extract",
        "field",
        "fileObject",
        "fileProperty",
        "fileSet",
        "format",
        "includes",
        "isArray",
        "isLiveDataset",
        "jsonPath",
        "key",
        "md5",
        "parentField",
        "path",
        "recordSet",
        "references",
        "regex",
        "repeated",
        "replace",
        "samplingRate",
        "separator",
        "source",
        "subField",
        "transform",
    ];
    if let Value::Object(context) = &mut context {
        context.extend(terms.map(|term| (term.to_owned(), json!(format!("cr:{term}")))));
    }
    context
}

/// The profile, the split and the tokenizer; files that are only claimed to be the profile's do not bear its name.
fn name(manifest: &Manifest) -> String {
    let claimed = if Origin::of(manifest).claimed.is_some() { "unverified-" } else { "" };
    format!("{claimed}{}-{}-gpt2", manifest.source.profile.replace('/', "-"), manifest.split)
}

fn description(manifest: &Manifest) -> String {
    let totals = &manifest.totals;
    let profile = &manifest.source.profile;
    let what = match Origin::of(manifest).claimed {
        None => format!("`{profile}`"),
        Some(claim) => format!("files in the layout of `{profile}` ({})", claim.sentence()),
    };
    let layout = match manifest.layout {
        Layout::Packed => format!(
            "packed end to end into rows of {} tokens, each document followed by token {}",
            manifest.packing.row_length, manifest.tokenizer.end_of_text
        ),
        Layout::Documents => "one record a document, with the windows it is scored in".into(),
        Layout::Examples => {
            format!("one record an example, {} positions of inputs and targets", manifest.packing.row_length)
        }
        Layout::Vectors => format!(
            "one record an example, {} positions of {} real-valued inputs and a target",
            manifest.packing.row_length,
            manifest.packing.input_width.unwrap_or_default()
        ),
    };
    format!(
        "{} documents ({} tokens, {} bytes of text) of {}, split {}, tokenized with {} and {layout}.",
        totals.documents, totals.tokens, totals.text_bytes, what, manifest.split, manifest.tokenizer.name
    )
}

/// The commit's page on the Hub.
fn commit_url(manifest: &Manifest) -> Option<String> {
    let Origin { repository, revision, .. } = Origin::of(manifest);
    let (repository, revision) = (repository?, revision?);
    Some(format!("https://huggingface.co/datasets/{repository}/tree/{revision}"))
}

fn licences(manifest: &Manifest) -> Value {
    let source = origin::normalized(&manifest.source);
    let stated = source.licences.iter().map(|licence| {
        let mut work = json!({
            "@type": "sc:CreativeWork",
            "name": licence.spdx.as_deref().unwrap_or("licence statement"),
            "description": licence.statement,
            "creditText": format!("claimed by {}", licence.claimed_by),
        });
        // Only a plain identifier has a page; an expression such as `MIT OR Apache-2.0` has none.
        let plain = |spdx: &&String| spdx.chars().all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c));
        if let (Some(spdx), Value::Object(work)) = (licence.spdx.as_ref().filter(plain), &mut work) {
            work.insert("url".into(), json!(format!("https://spdx.org/licenses/{spdx}.html")));
        }
        work
    });
    let mut own: Vec<&String> = manifest.inputs.iter().filter_map(|input| input.licence.as_ref()).collect();
    own.sort_unstable();
    own.dedup();
    let own = own.into_iter().map(|licence| {
        json!({"@type": "sc:CreativeWork", "name": licence, "creditText": "claimed by input files themselves"})
    });
    let records = manifest.record_licenses.iter().map(|total| {
        let what = format!("{} documents, {} tokens", total.documents, total.tokens);
        let who = "claimed by the documents themselves";
        json!({"@type": "sc:CreativeWork", "name": total.name, "description": what, "creditText": who})
    });
    Value::Array(stated.chain(own).chain(records).collect())
}

fn distribution(manifest: &Manifest) -> Result<Value, CommandError> {
    let bytes = manifest.to_bytes()?;
    let file = |name: &str, size: u64, sha256: Sha256Digest, encoding: &str, what: &str| {
        json!({
            "@type": "cr:FileObject", "@id": name, "name": name, "description": what, "contentUrl": name,
            "contentSize": format!("{size} B"), "encodingFormat": encoding, "sha256": sha256,
        })
    };
    let what = "manifest: every digest, count and source";
    let mut files =
        vec![file(MANIFEST_NAME, bytes.len() as u64, Sha256Digest::of(&bytes), "application/json", what)];
    let (content, companion) = match manifest.layout {
        Layout::Packed => ("rows of tokens", "where each document lies and comes from"),
        Layout::Documents => ("documents' tokens", "evaluation windows"),
        Layout::Examples | Layout::Vectors => {
            ("examples: inputs and targets", "where each example comes from")
        }
    };
    for shard in &manifest.shards {
        for (record, what) in [(&shard.file, content), (&shard.companion, companion)] {
            files.push(file(record.path.as_str(), record.size, record.sha256, ARROW, what));
        }
    }
    for record in &manifest.files {
        let encoding = if record.path.as_str().ends_with(".csv") { "text/csv" } else { "text/plain" };
        files.push(file(record.path.as_str(), record.size, record.sha256, encoding, "additional table"));
    }
    let (shards, companions) = names(manifest.layout);
    for (id, what) in [(shards, content), (companions, companion)] {
        files.push(json!({
            "@type": "cr:FileSet", "@id": format!("{id}-files"), "name": format!("{id}-files"),
            "description": what, "encodingFormat": ARROW, "includes": format!("{}*.arrow", prefix(id)),
        }));
    }
    debug_assert!(!files.iter().any(|file| file["@id"] == CHECKSUMS_NAME));
    Ok(Value::Array(files))
}

/// The record sets of a layout: content and companion.
fn names(layout: Layout) -> (&'static str, &'static str) {
    match layout {
        Layout::Packed => ("rows", "spans"),
        Layout::Documents => ("documents", "windows"),
        Layout::Examples => ("examples", "spans"),
        Layout::Vectors => ("vectors", "spans"),
    }
}

fn prefix(record_set: &str) -> String {
    format!("{}-", if matches!(record_set, "rows" | "examples" | "vectors") { "shard" } else { record_set })
}

/// A column: name, type, whether it is a list (of a fixed length, perhaps), what it holds.
type Column = (&'static str, &'static str, Option<i64>, &'static str);

/// In place of a length: as many as a row has inputs.
const INPUTS: i64 = 1;

const ROWS: &[Column] = &[
    ("input_ids", "cr:UInt16", Some(0), "token ids"),
    ("length", "cr:UInt16", None, "valid tokens at the front; the rest is filling"),
];
const EXAMPLES: &[Column] = &[
    ("input_ids", "cr:UInt16", Some(0), "what goes in"),
    ("targets", "cr:UInt16", Some(0), "what is to come out at that position; null where nothing is scored"),
    ("length", "cr:UInt16", None, "positions that count; the rest is padding"),
];
/// The numbers of a position follow each other: its array is as many times as long as a row.
const VECTORS: &[Column] = &[
    ("inputs", "cr:Float32", Some(INPUTS), "numbers that go in, position by position"),
    ("targets", "cr:Float32", Some(0), "the number that is to come out there; null where nothing is scored"),
    ("length", "cr:UInt16", None, "positions that count; the rest is padding"),
];
const SPANS: &[Column] = &[
    ("input", "cr:UInt32", None, "index of the source file in the manifest's inputs"),
    ("record", "cr:UInt64", None, "record number in that file"),
    ("row", "cr:UInt64", None, "row of the split that holds the document's first token"),
    ("offset", "cr:UInt16", None, "position of that token in the row"),
    ("length", "cr:UInt64", None, "tokens, separator included"),
    ("bytes", "cr:UInt64", None, "UTF-8 bytes of the text"),
    ("set", "cr:UInt16", None, "index into the manifest's sets"),
    ("digest", "sc:Text", None, "SHA-256 of the text, 32 bytes"),
    ("id", "sc:Text", None, "the source's own name for the document"),
];
const DOCUMENTS: &[Column] = &[
    ("input_ids", "cr:UInt16", Some(-1), "token ids, no separator"),
    ("source", "sc:Text", None, "the source's name"),
    ("domain", "sc:Text", None, "the domain inside the source"),
    ("id", "sc:Text", None, "the source's own name for the document"),
    ("bytes", "cr:UInt64", None, "UTF-8 bytes of the text"),
    ("chars", "cr:UInt64", None, "Unicode scalar values of the text"),
    ("words", "cr:UInt64", None, "pieces between runs of white space"),
    ("truncated", "sc:Boolean", None, "whether the source cut the document"),
    ("input", "cr:UInt32", None, "index of the source file in the manifest's inputs"),
    ("record", "cr:UInt64", None, "record number in that file"),
    ("digest", "sc:Text", None, "SHA-256 of the text, 32 bytes"),
];
const WINDOWS: &[Column] = &[
    ("document", "cr:UInt32", None, "row of the document in its shard"),
    ("start", "cr:UInt64", None, "first token that is scored"),
    ("predicted", "cr:UInt16", None, "tokens that are scored"),
    ("context", "cr:UInt16", None, "tokens before `start` that are input"),
];

fn record_sets(manifest: &Manifest) -> Value {
    let (content, companion) = names(manifest.layout);
    let columns = |name: &str| match name {
        "rows" => ROWS,
        "examples" => EXAMPLES,
        "vectors" => VECTORS,
        "spans" => SPANS,
        "documents" => DOCUMENTS,
        _ => WINDOWS,
    };
    let sets = [content, companion].map(|name| {
        let fields: Vec<Value> =
            columns(name).iter().map(|column| field(name, column, &manifest.packing)).collect();
        json!({"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields})
    });
    Value::Array(sets.into())
}

fn field(record_set: &str, &(name, kind, list, what): &Column, packing: &Packing) -> Value {
    let mut field = json!({
        "@type": "cr:Field", "@id": format!("{record_set}/{name}"), "name": name, "description": what,
        "dataType": kind,
        "source": {"fileSet": {"@id": format!("{record_set}-files")}, "extract": {"column": name}},
    });
    if let (Some(length), Value::Object(field)) = (list, &mut field) {
        let positions = u64::from(packing.row_length);
        let shape = match length {
            ..=-1 => "-1".to_owned(),
            INPUTS => (positions * u64::from(packing.input_width.unwrap_or(1))).to_string(),
            _ => positions.to_string(),
        };
        field.insert("isArray".into(), json!(true));
        field.insert("arrayShape".into(), json!(shape));
    }
    field
}

fn derived_from(manifest: &Manifest) -> Value {
    let commit = commit_url(manifest);
    let entity = |input: &Input| {
        let id = match (&manifest.source.repository, &manifest.source.resolved_revision) {
            (Some(repository), Some(revision)) => {
                format!("https://huggingface.co/datasets/{repository}/resolve/{revision}/{}", input.path)
            }
            _ => format!("urn:sha256:{}", input.sha256),
        };
        let mut entity = json!({
            "@id": id, "@type": "prov:Entity", "prov:label": input.path, "sha256": input.sha256,
            "contentSize": format!("{} B", input.size),
        });
        if let Value::Object(entity) = &mut entity {
            if let Some(licence) = &input.licence {
                entity.insert("license".into(), json!(licence));
            }
            let compared = input.declared.as_ref().map_or_else(
                || "compared with nothing that anybody published".to_owned(),
                |Declared { algorithm, digest, by }| {
                    format!("compared with {algorithm} {digest} published by {by}")
                },
            );
            entity.insert("description".into(), json!(compared));
        }
        entity
    };
    let whole = commit.map(
        |commit| json!({"@id": commit, "@type": "prov:Entity", "prov:label": manifest.source.repository}),
    );
    Value::Array(whole.into_iter().chain(manifest.inputs.iter().map(entity)).collect())
}

fn generated_by(manifest: &Manifest) -> Value {
    let tokenizer = &manifest.tokenizer;
    json!({
        "@type": "prov:Activity",
        "prov:label": format!(
            "tokenized with {} ({} {}, probe {})",
            tokenizer.name, tokenizer.engine, tokenizer.engine_version, tokenizer.probe_sha256
        ),
        "prov:wasAssociatedWith": {
            "@type": "prov:SoftwareAgent",
            "prov:label": format!("{} {}", manifest.tool.name, manifest.tool.version),
        },
    })
}

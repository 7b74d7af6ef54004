//! Canonical JSON: one byte sequence for one value.
//!
//! RFC 8785 restricted to what a manifest holds: objects, arrays, strings, booleans, null and unsigned
//! integers up to 2^53. Keys sort by their UTF-8 bytes (the same order as RFC 8785's UTF-16 one for the
//! ASCII keys used here); floats are refused, because no two languages print them alike.
//! Files for people are the same value indented by two spaces with a final newline.

use serde::Serialize;
use serde_json::Value;

/// A value that has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// Serialization failed.
    #[error("not representable as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A number that is not an unsigned integer up to 2^53.
    #[error("the number {0} has no canonical form: write it as a string or an integer below 2^53")]
    Number(serde_json::Number),
}

/// The largest integer that has a canonical form: 2^53, up to which all programs agree on whole numbers.
pub const LARGEST: u64 = 1 << 53;

fn check(value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(integer) if integer <= LARGEST => Ok(()),
            _ => Err(CanonicalError::Number(number.clone())),
        },
        Value::Array(items) => items.iter().try_for_each(check),
        Value::Object(entries) => entries.values().try_for_each(check),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// The compact canonical bytes, as digests cover them.
///
/// # Errors
/// When the value holds a float or an integer above 2^53.
pub fn to_canonical_bytes(value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    // `serde_json::Value` keeps objects in a B-tree: keys come out sorted.
    let value = serde_json::to_value(value)?;
    check(&value)?;
    Ok(serde_json::to_vec(&value)?)
}

/// The indented form that files hold.
///
/// # Errors
/// As [`to_canonical_bytes`].
pub fn to_canonical_file(value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    let value = serde_json::to_value(value)?;
    check(&value)?;
    let mut bytes = serde_json::to_vec_pretty(&value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_and_floats_are_refused() {
        let value = serde_json::json!({"b": [1, "é\n"], "a": {"z": null, "y": true}});
        let bytes = to_canonical_bytes(&value).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), r#"{"a":{"y":true,"z":null},"b":[1,"é\n"]}"#);
        assert!(to_canonical_bytes(&1.5).is_err());
        assert!(to_canonical_bytes(&-1).is_err());
        assert!(to_canonical_bytes(&((1u64 << 53) + 1)).is_err());
    }
}

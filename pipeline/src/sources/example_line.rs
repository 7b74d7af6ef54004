//! One line of a file of examples: the object that JSON has, as an example or the reason why it is none.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use xlstm_manifests::stored::OfKind;
use xlstm_manifests::vectors::MAX_WIDTH;

use super::examples::{SourceExample, SourceNumbers, SourceTokens};

/// The number that stands for "not scored" beside `null`.
const IGNORED: i64 = -100;

/// A target as JSON has it.
#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(i64),
    Any(f64),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Element::deserialize(deserializer)? {
            Element::Number(number) => Ok(number),
            Element::List(_) => Err(D::Error::invalid_type(Unexpected::Seq, &"a number or null")),
        }
    }
}

/// A number, or a list of them. Read without a copy in between, whose memory a hostile line would decide.
enum Element {
    Number(Number),
    List(Vec<f32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfElement;

        impl<'de> Visitor<'de> for OfElement {
            type Value = Element;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number, or a list of numbers")
            }

            fn visit_i64<E>(self, number: i64) -> Result<Element, E> {
                Ok(Element::Number(Number::Whole(number)))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Element, E> {
                Ok(Element::Number(i64::try_from(number).map_or(Number::Any(number as f64), Number::Whole)))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Element, E> {
                Ok(Element::Number(Number::Any(number)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Element::List(numbers))
            }
        }

        deserializer.deserialize_any(OfElement)
    }
}

/// Numbers that go in: in one list, or in a list for each position.
#[derive(Default)]
struct Inputs {
    numbers: Vec<f32>,
    /// How many positions, where each has a list, and the numbers of the first.
    by_position: Option<(usize, usize)>,
    /// The first position with another number of them, and how many it has.
    uneven: Option<(usize, usize)>,
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfInputs;

        impl<'de> Visitor<'de> for OfInputs {
            type Value = Inputs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of numbers, or of lists of numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
                let mut inputs = Inputs::default();
                while let Some(element) = list.next_element()? {
                    match (element, &mut inputs.by_position) {
                        (Element::Number(number), None) => inputs.numbers.push(number.nearest()),
                        (Element::List(numbers), None) if inputs.numbers.is_empty() => {
                            inputs.by_position = Some((1, numbers.len()));
                            inputs.numbers = numbers;
                        }
                        (Element::List(numbers), Some((positions, width))) => {
                            if numbers.len() != *width {
                                inputs.uneven.get_or_insert((*positions, numbers.len()));
                            }
                            *positions += 1;
                            inputs.numbers.extend_from_slice(&numbers);
                        }
                        _ => return Err(A::Error::custom("numbers beside lists of numbers")),
                    }
                }
                Ok(inputs)
            }
        }

        deserializer.deserialize_seq(OfInputs)
    }
}

impl Number {
    /// The nearest float32; what is beyond all of them is refused as not finite.
    fn nearest(self) -> f32 {
        match self {
            Self::Whole(number) => number as f32,
            Self::Any(number) => number as f32,
        }
    }
}

/// One line, as serde reads it.
#[derive(Deserialize)]
struct Line {
    input_ids: Option<Vec<u16>>,
    inputs: Option<Inputs>,
    targets: Vec<Option<Number>>,
    length: Option<usize>,
    id: Option<String>,
    set: Option<String>,
}

/// An example, or the reason why it cannot be used and what was found.
pub(super) type Parsed<T> = Result<T, (&'static str, String)>;

fn invalid<T>(found: String) -> Parsed<T> {
    Err(("invalid-example", found))
}

pub(super) fn parse(line: &[u8]) -> Parsed<SourceExample> {
    let Line { input_ids, inputs, targets, length, id, set } =
        serde_json::from_slice(line).map_err(|error| ("invalid-json", error.to_string()))?;
    let positions = targets.len();
    let content = match (input_ids, inputs) {
        (Some(input_ids), None) => OfKind::Tokens(tokens(input_ids, &targets)?),
        (None, Some(inputs)) => OfKind::Numbers(numbers(inputs, &targets)?),
        (Some(_), Some(_)) => return invalid("input_ids and inputs, expected one of them".into()),
        (None, None) => {
            let found = "neither input_ids (tokens) nor inputs (numbers)";
            return Err(("invalid-json", found.into()));
        }
    };
    let length = length.unwrap_or(positions);
    if length > positions {
        return invalid(format!("length {length}, expected at most {positions}, its positions"));
    }
    let Ok(length) = u16::try_from(length) else {
        return invalid(format!("{length} positions that count, expected at most {}", u16::MAX));
    };
    Ok(SourceExample { content, length, id, set })
}

fn tokens(input_ids: Vec<u16>, targets: &[Option<Number>]) -> Parsed<SourceTokens> {
    if input_ids.len() != targets.len() {
        let (ids, targets) = (input_ids.len(), targets.len());
        return invalid(format!("{ids} input_ids and {targets} targets, expected as many of both"));
    }
    let mut checked = Vec::with_capacity(targets.len());
    for (position, target) in targets.iter().enumerate() {
        let (id, shown) = match target {
            None | Some(Number::Whole(IGNORED)) => {
                checked.push(None);
                continue;
            }
            Some(Number::Whole(target)) => (u16::try_from(*target).ok(), target.to_string()),
            Some(Number::Any(target)) => (None, target.to_string()),
        };
        let Some(id) = id else {
            return invalid(format!(
                "target {shown} at position {position}, expected 0 to 65535, or null or {IGNORED} where nothing is scored"
            ));
        };
        checked.push(Some(id));
    }
    Ok(SourceTokens { input_ids, targets: checked })
}

fn numbers(inputs: Inputs, targets: &[Option<Number>]) -> Parsed<SourceNumbers> {
    let positions = targets.len();
    let given = inputs.numbers.len();
    let width = match (inputs.by_position, inputs.uneven) {
        (Some((lists, _)), _) if lists != positions => {
            let found = format!("inputs of {lists} positions and {positions} targets");
            return invalid(format!("{found}, expected as many of both"));
        }
        (Some((_, width)), Some((position, other))) => {
            return invalid(format!(
                "{other} inputs at position {position}, expected {width} as at position 0"
            ));
        }
        (Some((_, width)), None) => width,
        (None, _) if given.is_multiple_of(positions.max(1)) => given / positions.max(1),
        (None, _) => {
            let found = format!("{given} inputs and {positions} targets");
            return invalid(format!("{found}, expected equally many inputs for each target"));
        }
    };
    let width = match u32::try_from(width) {
        Ok(width @ 1..=MAX_WIDTH) => width,
        _ => return invalid(format!("{width} inputs at a position, expected 1 to {MAX_WIDTH}")),
    };
    let targets = targets.iter().map(|target| target.map(Number::nearest)).collect();
    Ok(SourceNumbers { width, inputs: inputs.numbers, targets })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_in_one_list_or_in_a_list_for_each_position() {
        let parsed = |line: &str| {
            parse(line.as_bytes()).map(|example| match example.content {
                OfKind::Numbers(SourceNumbers { width, inputs, targets }) => {
                    (width, inputs, targets, example.length)
                }
                OfKind::Tokens(tokens) => panic!("{tokens:?}"),
            })
        };
        let expected = (2, vec![0.5, -1.0, 0.1, 3.0], vec![None, Some(-100.0)], 2);
        for inputs in ["[[0.5, -1], [0.1, 3]]", "[0.5, -1, 0.1, 3]"] {
            let line = format!("{{\"inputs\": {inputs}, \"targets\": [null, -100]}}");
            assert_eq!(parsed(&line).as_ref(), Ok(&expected), "of a number -100 is a target like any other");
        }
        for (line, part) in [
            ("{\"inputs\": [[1], [2, 3]], \"targets\": [1, 2]}", "2 inputs at position 1, expected 1"),
            ("{\"inputs\": [[1]], \"targets\": [1, 2]}", "inputs of 1 positions and 2 targets"),
            ("{\"inputs\": [1, 2, 3], \"targets\": [1, 2]}", "3 inputs and 2 targets"),
            ("{\"inputs\": [[], []], \"targets\": [1, 2]}", "0 inputs at a position, expected 1 to 4096"),
            ("{\"inputs\": [], \"targets\": []}", "0 inputs at a position"),
            ("{\"inputs\": [1], \"input_ids\": [1], \"targets\": [1]}", "expected one of them"),
            ("{\"inputs\": [null], \"targets\": [1]}", "a number, or a list of numbers"),
            ("{\"inputs\": [1, [1]], \"targets\": [1, 2]}", "numbers beside lists of numbers"),
            ("{\"inputs\": [1], \"targets\": [[1]]}", "a number or null"),
            ("{\"input_ids\": [1], \"targets\": [0.5]}", "target 0.5 at position 0"),
        ] {
            let (_, found) = parsed(line).unwrap_err();
            assert!(found.contains(part), "{line}: {found}");
        }
    }
}

//! From text to a resolved recipe: layers of tables over the defaults, with the nearest known key for a typo.

use std::collections::HashSet;
use std::path::Path;

use toml::{Table, Value};

use super::architecture::{ARCHITECTURE_KEY, ModelConfig};
use super::keys::{self, dotted};
use super::{Recipe, RecipeError, Result, builtin};

/// A recipe, and what its file said of it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The resolved recipe.
    pub recipe: Recipe,
    /// Whether it is a file, and not a built-in recipe.
    pub from_file: bool,
    /// The keys that neither the file nor an override sets, with their default values, as `key = value`.
    pub defaulted: Vec<String>,
}

/// A recipe by built-in name or file, with variant (`NAME/VARIANT`, `FILE.toml/VARIANT`) and overrides applied.
///
/// # Errors
/// When there is no such recipe or variant, a key is unknown, or values do not fit or contradict each other.
pub fn load(name: &str, overrides: &[String]) -> Result<Recipe> {
    Ok(load_described(name, overrides)?.recipe)
}

/// As [`load`], with what was left to the defaults.
///
/// # Errors
/// As [`load`].
pub fn load_described(name: &str, overrides: &[String]) -> Result<Loaded> {
    let found = find(name)?;
    let table: Table = found.text.parse().map_err(|error: toml::de::Error| RecipeError::Syntax {
        name: name.into(),
        reason: in_short(&error),
    })?;
    let (recipe, set) = resolve_table(name, table, &found.stem, found.variant.as_deref(), overrides)?;
    let table = to_table(&recipe)?;
    let left = dotted(&table).into_iter().filter(|(key, _)| key.contains('.') && !set.contains(key));
    let defaulted = left.map(|(key, value)| format!("{key} = {value}")).collect();
    Ok(Loaded { recipe, from_file: found.from_file, defaulted })
}

/// What is wrong with a text in TOML, with the line that it is on where that is a line for people.
#[must_use]
pub fn in_short(error: &toml::de::Error) -> String {
    let text = error.to_string();
    if text.len() < 1000 { text } else { error.message().trim_end().to_owned() }
}

/// Overrides on top of a recipe that is already resolved.
///
/// # Errors
/// As [`load`].
pub fn resolve(recipe: &Recipe, overrides: &[String]) -> Result<Recipe> {
    let table = to_table(recipe)?;
    let stem = recipe.name.clone();
    Ok(resolve_table(&recipe.name, table, &stem, None, overrides)?.0)
}

/// The text behind a name.
struct Found {
    text: String,
    stem: String,
    variant: Option<String>,
    from_file: bool,
}

fn find(name: &str) -> Result<Found> {
    let split = |name: &str| match name.rsplit_once('/') {
        Some((file, variant)) => (file.to_owned(), Some(variant.to_owned())),
        None => (name.to_owned(), None),
    };
    for (file, variant) in [(name.to_owned(), None), split(name)] {
        if Path::new(&file).is_file() {
            let stem = Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let (text, stem) = (fs_err::read_to_string(&file)?, stem.unwrap_or_default());
            return Ok(Found { text, stem, variant, from_file: true });
        }
        if let Some(found) = builtin::builtins().iter().find(|builtin| builtin.name == file) {
            return Ok(Found { text: found.text.to_owned(), stem: file, variant, from_file: false });
        }
    }
    let names: Vec<String> = builtin::builtins().iter().flat_map(|builtin| builtin.full_names()).collect();
    let hint =
        nearest(name, names.iter().map(String::as_str)).map(|near| format!(" (did you mean `{near}`?)"));
    Err(RecipeError::Unknown { name: name.into(), hint: hint.unwrap_or_default() })
}

fn to_table(recipe: &Recipe) -> Result<Table> {
    Table::try_from(recipe)
        .map_err(|error| RecipeError::Syntax { name: recipe.name.clone(), reason: error.to_string() })
}

/// The recipe, and the dotted keys that its layers set.
fn resolve_table(
    name: &str,
    mut table: Table,
    stem: &str,
    variant: Option<&str>,
    overrides: &[String],
) -> Result<(Recipe, HashSet<String>)> {
    let mut resolved = to_table(&Recipe::default())?;
    let mut set = HashSet::new();
    let mut note = |layer: &Table| set.extend(dotted(layer).into_iter().map(|(key, _)| key));
    let variants = match table.remove("variant") {
        None => Table::new(),
        Some(Value::Table(variants)) => variants,
        Some(other) => return Err(value_error(name, "variant", "a table of variants", &other)),
    };
    resolved.insert("name".into(), Value::String(stem.into()));
    note(&table);
    add_layer(name, &mut resolved, table)?;
    if let Some(variant) = variant {
        let layer = match variants.get(variant) {
            Some(Value::Table(layer)) => layer.clone(),
            Some(other) => return Err(value_error(name, &format!("variant.{variant}"), "a table", other)),
            None => {
                let near = nearest(variant, variants.keys().map(String::as_str));
                let hint = near.map(|near| format!(" (did you mean `{stem}/{near}`?)"));
                return Err(RecipeError::Unknown { name: name.into(), hint: hint.unwrap_or_default() });
            }
        };
        resolved.insert("name".into(), Value::String(format!("{stem}/{variant}")));
        note(&layer);
        add_layer(name, &mut resolved, layer)?;
    }
    let mut layers = Vec::with_capacity(overrides.len());
    for text in overrides {
        layers.push((text, parse_override(text)?));
    }
    // An architecture replaces all of `[model]`, so its override is applied first, whatever the order.
    layers.sort_by_key(|(_, layer)| architecture_of(layer).is_none());
    for (text, layer) in layers {
        note(&layer);
        add_layer(&format!("--set {text}"), &mut resolved, layer)?;
    }
    let recipe: Recipe = resolved.clone().try_into().map_err(|error: toml::de::Error| {
        let key = key_of_error(&resolved).map(|key| format!("`{key}`: ")).unwrap_or_default();
        RecipeError::Syntax { name: name.into(), reason: format!("{key}{}", error.message()) }
    })?;
    super::validate::check(&recipe)?;
    Ok((recipe, set))
}

/// Adds a layer. If it names another architecture, `[model]` starts over from that architecture's defaults.
fn add_layer(name: &str, resolved: &mut Table, layer: Table) -> Result<()> {
    if let Some(wanted) = architecture_of(&layer).filter(|wanted| Some(*wanted) != architecture_of(resolved))
    {
        let model = wanted.as_str().and_then(ModelConfig::default_of).ok_or_else(|| {
            let expected = format!("one of {}", ModelConfig::ARCHITECTURES.join(", "));
            value_error(name, "model.architecture", &expected, wanted)
        })?;
        let table = Table::try_from(&model)
            .map_err(|error| RecipeError::Syntax { name: name.into(), reason: error.to_string() })?;
        resolved.insert("model".into(), Value::Table(table));
    }
    let architecture = architecture_of(resolved).and_then(Value::as_str).unwrap_or_default();
    let known = keys::known(architecture);
    merge(name, resolved, layer, "", &known)
}

/// What a layer says of `model.architecture`.
fn architecture_of(layer: &Table) -> Option<&Value> {
    layer.get("model").and_then(Value::as_table).and_then(|model| model.get(ARCHITECTURE_KEY))
}

/// `a.b=value` as a table. A value that is no TOML is taken as a string: `--set training.precision=float32`.
fn parse_override(text: &str) -> Result<Table> {
    let fail = |reason: String| RecipeError::Syntax { name: format!("--set {text}"), reason };
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| fail("expected `key=value`, such as `training.steps=100`".into()))?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() {
        return Err(fail("expected a key before `=`".into()));
    }
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.into()));
    for part in key.rsplit('.') {
        let mut table = Table::new();
        table.insert(part.trim().into(), value);
        value = Value::Table(table);
    }
    match value {
        Value::Table(table) => Ok(table),
        _ => Err(fail("expected `key=value`".into())),
    }
}

fn merge(name: &str, base: &mut Table, layer: Table, prefix: &str, known: &[&str]) -> Result<()> {
    for (key, value) in layer {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (base.get_mut(&key), value) {
            (None, value) => {
                // A misspelled table: say the whole key, which is nearer to the one that was meant.
                let inner = value.as_table().and_then(|table| keys::dotted(table).into_iter().next());
                let key = inner.map_or_else(|| dotted.clone(), |(inner, _)| format!("{dotted}.{inner}"));
                let hint = unknown_key_hint(&key, known);
                return Err(RecipeError::UnknownKey { name: name.into(), key, hint });
            }
            (Some(Value::Table(inner)), Value::Table(layer)) => merge(name, inner, layer, &dotted, known)?,
            (Some(Value::Table(_)), other) => {
                return Err(value_error(name, &dotted, "a table of keys", &other));
            }
            (Some(slot @ Value::Float(_)), Value::Integer(number)) => *slot = Value::Float(number as f64),
            (Some(slot @ Value::Array(_)), Value::Array(items)) => {
                *slot = Value::Array(numbers_like(slot, items))
            }
            (Some(slot), value) if slot.same_type(&value) => *slot = value,
            (Some(slot), value) => {
                return Err(value_error(
                    name,
                    &dotted,
                    &format!("a value of type {}", slot.type_str()),
                    &value,
                ));
            }
        }
    }
    Ok(())
}

/// What to write instead of a key that is not known: the key that differs by a slip of the hand, or else all keys of its
/// section.
fn unknown_key_hint(key: &str, known: &[&str]) -> String {
    let parts = |key: &str| {
        let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
        (section.to_owned(), last.to_owned())
    };
    let (section, last) = parts(key);
    let slips = 1.max(last.chars().count() / 4);
    let near = known.iter().filter(|name| edits(&last, &parts(name).1) <= slips);
    if let Some(near) = near.min_by_key(|name| edits(key, name)) {
        return format!(" (did you mean `{near}`?)");
    }
    let inside: Vec<String> = known
        .iter()
        .map(|name| parts(name))
        .filter(|(other, _)| *other == section)
        .map(|(_, last)| last)
        .collect();
    match inside.as_slice() {
        [] => String::new(),
        _ if section.is_empty() => String::new(),
        keys => format!(" (`{section}` has: {})", keys.join(", ")),
    }
}

/// The key whose value is no recipe's, found by trying one after the other in the default recipe.
fn key_of_error(resolved: &Table) -> Option<String> {
    fn value_at<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut Value> {
        match key.split_once('.') {
            None => table.get_mut(key),
            Some((section, rest)) => value_at(table.get_mut(section)?.as_table_mut()?, rest),
        }
    }
    let mut resolved = resolved.clone();
    let keys: Vec<String> = dotted(&resolved).into_iter().map(|(key, _)| key).collect();
    keys.into_iter().find(|key| {
        let Ok(mut default) = to_table(&Recipe::default()) else { return false };
        let (Some(slot), Some(value)) = (value_at(&mut default, key), value_at(&mut resolved, key)) else {
            return false;
        };
        *slot = value.clone();
        default.try_into::<Recipe>().is_err()
    })
}

/// Whole numbers become floats where the default holds floats: `[3, 6]` for `[3.0, 6.0]`.
fn numbers_like(slot: &Value, items: Vec<Value>) -> Vec<Value> {
    let floats = slot.as_array().is_some_and(|array| array.first().is_some_and(Value::is_float));
    let convert = |value: Value| match value {
        Value::Integer(number) if floats => Value::Float(number as f64),
        other => other,
    };
    items.into_iter().map(convert).collect()
}

fn value_error(name: &str, key: &str, expected: &str, found: &Value) -> RecipeError {
    RecipeError::Value {
        name: name.into(),
        key: key.into(),
        expected: expected.into(),
        found: format!("`{found}` ({})", found.type_str()),
    }
}

/// The name nearest to `text`, if one is near: by edits, over whole dotted keys and over their last part.
#[must_use]
pub fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit(['.', '/']).next().unwrap_or_default().to_owned();
    let distance = |name: &str| edits(text, name).min(edits(&last(text), &last(name)) + 1);
    let (best, name) = names.map(|name| (distance(name), name)).min()?;
    (best <= 2 + text.chars().count() / 4).then_some(name)
}

/// Levenshtein distance.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::super::XlstmConfig;
    use super::*;

    fn set(overrides: &[&str]) -> Result<Recipe> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        resolve(&Recipe::default(), &overrides)
    }

    #[test]
    fn overrides_reach_every_kind_of_value() {
        let recipe = set(&[
            "training.steps=10",
            "optimizer.learning_rate=1",
            "training.precision=float32",
            "model.slstm_at=[0, 2]",
            "model.mlstm.forget_gate_bias=[3, 6]",
            "schedule.warmup_steps = 0",
        ])
        .unwrap();
        assert_eq!((recipe.training.steps, recipe.optimizer.learning_rate), (10, 1.0));
        let expected = XlstmConfig { slstm_at: vec![0, 2], ..XlstmConfig::default() };
        assert_eq!(recipe.model, ModelConfig::Xlstm(expected));
        let again: Recipe = toml::from_str(&recipe.to_toml().unwrap()).unwrap();
        assert_eq!(again, recipe, "a printed recipe is a recipe");
    }

    #[test]
    fn a_typo_names_the_nearest_key() {
        for (text, near) in [
            ("training.step=1", "training.steps"),
            ("optimiser.learning_rate=1", "optimizer.learning_rate"),
            ("learning_rate=1", "optimizer.learning_rate"),
            ("model.embeding_dim=64", "model.embedding_dim"),
        ] {
            let error = set(&[text]).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean `{near}`?")), "{text}: {error}");
        }
        let error = set(&["zzzzzz=1"]).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
        // Nothing near: what there is.
        let error = set(&["training.label_smoothing=0.1"]).unwrap_err().to_string();
        assert!(!error.contains("did you mean") && error.contains("`training` has: "), "{error}");
        assert!(error.contains("context_length"), "{error}");
        let error = set(&["training.precision=fp16"]).unwrap_err().to_string();
        assert!(error.contains("`training.precision`: ") && error.contains("bfloat16"), "{error}");
    }

    #[test]
    fn an_unknown_architecture_is_named() {
        let error = set(&["model.architecture=lstmx"]).unwrap_err().to_string();
        assert!(error.contains("`model.architecture` expected one of xlstm"), "{error}");
    }

    #[test]
    fn values_of_another_type_are_refused() {
        for text in ["training.steps=many", "training.precision=float16", "model=3", "training.steps", "=1"] {
            assert!(set(&[text]).is_err(), "{text}");
        }
        let error = set(&["training.steps=1.5"]).unwrap_err().to_string();
        assert!(error.contains("expected a value of type integer") && error.contains("1.5"), "{error}");
    }

    #[test]
    fn a_file_may_hold_variants() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let text = "description = 'x'\n[training]\nsteps = 900\n[variant.small.model]\nembedding_dim = 64\n";
        fs_err::write(&path, text).unwrap();
        let name = path.display().to_string();
        assert_eq!(load(&name, &[]).unwrap().name, "mine");
        let recipe = load(&format!("{name}/small"), &[]).unwrap();
        assert_eq!(
            (recipe.name.as_str(), recipe.model.embedding_dim(), recipe.training.steps),
            ("mine/small", 64, 900)
        );
        let error = load(&format!("{name}/smal"), &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `mine/small`?"), "{error}");
    }
}

//! Refusals in one form: the recipe, the key, what it can be, what it is.

use std::fmt::Display;

use crate::recipe::{RecipeError, Result};

/// Checks the values of one recipe.
#[derive(Debug, Clone, Copy)]
pub struct Checker<'a> {
    /// The recipe's name, for messages.
    name: &'a str,
}

impl<'a> Checker<'a> {
    /// A checker for the recipe of this name.
    #[must_use]
    pub fn new(name: &'a str) -> Self {
        Self { name }
    }

    /// Refuses what does not hold.
    ///
    /// # Errors
    /// Unless `holds`.
    pub fn require(&self, holds: bool, key: &str, expected: &str, found: impl Display) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(RecipeError::Value {
            name: self.name.into(),
            key: key.into(),
            expected: expected.into(),
            found: found.to_string(),
        })
    }

    /// A whole number from `low` to `high`.
    ///
    /// # Errors
    /// Outside.
    pub fn range(&self, key: &str, value: u64, low: u64, high: u64) -> Result<()> {
        self.require((low..=high).contains(&value), key, &format!("{low} to {high}"), value)
    }

    /// A whole number of at least one.
    ///
    /// # Errors
    /// For zero.
    pub fn positive(&self, key: &str, value: u64) -> Result<()> {
        self.require(value > 0, key, "1 or more", value)
    }

    /// A factor of a width.
    ///
    /// # Errors
    /// At zero or below, and above 64.
    pub fn factor(&self, key: &str, value: f64) -> Result<()> {
        self.require(value > 0.0 && value <= 64.0, key, "above 0, at most 64", value)
    }

    /// A finite number that is not negative.
    ///
    /// # Errors
    /// For other numbers.
    pub fn not_negative(&self, key: &str, value: f64) -> Result<()> {
        self.require(value >= 0.0 && value.is_finite(), key, "0 or more", value)
    }

    /// A number of heads that share `width` out.
    ///
    /// # Errors
    /// When there are none, or they do not divide the width.
    pub fn heads(&self, key: &str, heads: u64, width: u64) -> Result<()> {
        let divides = heads > 0 && width.is_multiple_of(heads);
        self.require(divides, key, &format!("a divisor of the width {width}"), heads)
    }
}

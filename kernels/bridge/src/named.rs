//! Tensors by name where libtorch wants them by number: a node's inputs, outputs and saved tensors are structs.
//!
//! [`named_tensors!`](crate::named_tensors) declares them. A struct over a type parameter is one set of names for many
//! kinds of values: the inputs of a node as `Inputs<Option<&Tensor>>`, whether their gradients are wanted as
//! `Inputs<bool>`, the gradients themselves as `Inputs<Option<Tensor>>`; so a gradient that is missing or too many does
//! not compile. A struct without a parameter is what a node saves, each field a tensor, an optional tensor, an array
//! of these or another set.
//!
//! ```ignore
//! xlstm_bridge::named_tensors! {
//!     /// What the product takes.
//!     struct Inputs<T> { left: T, right: T }
//!     /// What its backward pass needs.
//!     struct Saved { left: tch::Tensor, bias: Option<tch::Tensor> }
//! }
//! ```

use tch::Tensor;

/// A struct whose fields all have the type `T`, in a fixed order. Made by [`named_tensors!`](crate::named_tensors).
pub trait Named<T>: Sized {
    /// The same names for values of another type.
    type As<U>: Named<U>;

    /// How many fields there are.
    const COUNT: usize;

    /// The fields in their order.
    fn into_values(self) -> Vec<T>;

    /// The fields from values in their order; `None` when there are too few.
    fn from_values(values: &mut dyn Iterator<Item = T>) -> Option<Self>;

    /// Apply a function to each field.
    fn map<U>(self, function: impl FnMut(T) -> U) -> Self::As<U>;
}

/// Values that have numbers for names.
impl<T, const N: usize> Named<T> for [T; N] {
    type As<U> = [U; N];
    const COUNT: usize = N;

    fn into_values(self) -> Vec<T> {
        self.into()
    }

    fn from_values(values: &mut dyn Iterator<Item = T>) -> Option<Self> {
        values.take(N).collect::<Vec<T>>().try_into().ok()
    }

    fn map<U>(self, function: impl FnMut(T) -> U) -> [U; N] {
        <[T; N]>::map(self, function)
    }
}

/// What a node keeps for its backward pass. Made by [`named_tensors!`](crate::named_tensors).
pub trait Saved: Sized {
    /// Append the tensors in their order, `None` for those that are absent.
    fn store(self, into: &mut Vec<Option<Tensor>>);

    /// Take the tensors back in the same order; `None` when one is missing.
    fn load(from: &mut dyn Iterator<Item = Option<Tensor>>) -> Option<Self>;
}

impl Saved for () {
    fn store(self, _: &mut Vec<Option<Tensor>>) {}

    fn load(_: &mut dyn Iterator<Item = Option<Tensor>>) -> Option<Self> {
        Some(())
    }
}

impl Saved for Tensor {
    fn store(self, into: &mut Vec<Option<Tensor>>) {
        into.push(Some(self));
    }

    fn load(from: &mut dyn Iterator<Item = Option<Tensor>>) -> Option<Self> {
        from.next().flatten()
    }
}

impl Saved for Option<Tensor> {
    fn store(self, into: &mut Vec<Option<Tensor>>) {
        into.push(self);
    }

    fn load(from: &mut dyn Iterator<Item = Option<Tensor>>) -> Option<Self> {
        from.next()
    }
}

impl<S: Saved, const N: usize> Saved for [S; N] {
    fn store(self, into: &mut Vec<Option<Tensor>>) {
        self.into_iter().for_each(|saved| saved.store(into));
    }

    fn load(from: &mut dyn Iterator<Item = Option<Tensor>>) -> Option<Self> {
        let loaded: Option<Vec<S>> = (0..N).map(|_| S::load(from)).collect();
        loaded?.try_into().ok()
    }
}

/// Declare sets of named tensors: `struct Name<T> { field: T, … }` implements [`Named`] for every `T` (and [`Saved`]
/// where `T` does), `struct Name { field: Tensor, … }` implements [`Saved`].
#[macro_export]
macro_rules! named_tensors {
    () => {};
    (
        $(#[$attribute:meta])* $visible:vis struct $name:ident<$value:ident> {
            $($(#[$about:meta])* $field_visible:vis $field:ident: $same:ident),+ $(,)?
        }
        $($rest:tt)*
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy)]
        $visible struct $name<$value> { $($(#[$about])* $field_visible $field: $same),+ }

        impl<$value> $crate::named::Named<$value> for $name<$value> {
            type As<U> = $name<U>;
            const COUNT: usize = [$(stringify!($field)),+].len();
            fn into_values(self) -> Vec<$value> {
                vec![$(self.$field),+]
            }
            fn from_values(values: &mut dyn Iterator<Item = $value>) -> Option<Self> {
                Some(Self { $($field: values.next()?),+ })
            }
            fn map<U>(self, mut function: impl FnMut($value) -> U) -> $name<U> {
                $name { $($field: function(self.$field)),+ }
            }
        }

        impl<$value: $crate::named::Saved> $crate::named::Saved for $name<$value> {
            fn store(self, into: &mut Vec<Option<::tch::Tensor>>) {
                $($crate::named::Saved::store(self.$field, into);)+
            }
            fn load(from: &mut dyn Iterator<Item = Option<::tch::Tensor>>) -> Option<Self> {
                Some(Self { $($field: $crate::named::Saved::load(from)?),+ })
            }
        }

        $crate::named_tensors! { $($rest)* }
    };
    (
        $(#[$attribute:meta])* $visible:vis struct $name:ident {
            $($(#[$about:meta])* $field_visible:vis $field:ident: $saved:ty),+ $(,)?
        }
        $($rest:tt)*
    ) => {
        $(#[$attribute])*
        #[derive(Debug)]
        $visible struct $name { $($(#[$about])* $field_visible $field: $saved),+ }

        impl $crate::named::Saved for $name {
            fn store(self, into: &mut Vec<Option<::tch::Tensor>>) {
                $($crate::named::Saved::store(self.$field, into);)+
            }
            fn load(from: &mut dyn Iterator<Item = Option<::tch::Tensor>>) -> Option<Self> {
                Some(Self { $($field: <$saved as $crate::named::Saved>::load(from)?),+ })
            }
        }

        $crate::named_tensors! { $($rest)* }
    };
}

crate::named_tensors! {
    /// The one output of a node that has no more.
    pub struct Output<T> {
        /// The output.
        pub y: T,
    }
}

impl Output<Option<Tensor>> {
    /// The gradient of the only output: the backward pass runs only where there is one.
    ///
    /// # Errors
    /// When there is none after all.
    pub fn gradient(self) -> Result<Tensor, crate::BoxError> {
        self.y.ok_or_else(|| "the output has no gradient".into())
    }
}

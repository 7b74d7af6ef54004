//! Operations over many tensors in a few launches: AdamW, a norm, dropping gradients.
//!
//! On a GPU the arithmetic of one small tensor takes less time than its launch; libtorch's `_foreach` and fused
//! operations take hundreds of tensors at once.

use tch::Tensor;

use crate::{BridgeError, ffi};

/// What AdamW reads and changes: as many gradients and moments as parameters, all fp32 on one device, where the numbers of an
/// update lie too: so an update waits for nothing and can be recorded.
#[derive(Debug, Clone, Copy)]
pub struct AdamWTensors<'a> {
    /// Changed in place.
    pub parameters: &'a [Tensor],
    /// Divided by the scale in place.
    pub gradients: &'a [Tensor],
    /// First moments, changed in place.
    pub first: &'a [Tensor],
    /// Second moments, changed in place.
    pub second: &'a [Tensor],
    /// One number: which update this is, from 1.
    pub step: &'a Tensor,
    /// One number that gradients are divided by.
    pub scale: &'a Tensor,
    /// One number, the learning rate.
    pub learning_rate: &'a Tensor,
    /// One number: with 1, nothing is changed; 0 elsewhere.
    pub skip: &'a Tensor,
}

/// The constants of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "names say it")]
pub struct AdamWConstants {
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub epsilon: f64,
}

/// One update with decoupled weight decay, by libtorch's fused operation.
///
/// # Errors
/// When the lists differ in length, or libtorch fails.
pub fn adamw(tensors: &AdamWTensors<'_>, constants: &AdamWConstants) -> Result<(), BridgeError> {
    let count = tensors.parameters.len();
    let all = [tensors.parameters, tensors.gradients, tensors.first, tensors.second];
    if let Some(other) = all.iter().find(|list| list.len() != count) {
        return Err(BridgeError::Contract {
            name: "adamw",
            expected: format!("{count} tensors in each list"),
            found: other.len().to_string(),
        });
    }
    if count == 0 {
        return Ok(());
    }
    let [parameters, gradients, first, second] = all.map(|list| ffi::handles(list.iter().map(Some)));
    // SAFETY: four lists of `count` live tensors, and four more.
    unsafe {
        ffi::check(ffi::xlstm_optimizer_adamw(
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            count,
            tensors.step.as_ptr().cast(),
            tensors.scale.as_ptr().cast(),
            tensors.learning_rate.as_ptr().cast(),
            tensors.skip.as_ptr().cast(),
            constants.beta1,
            constants.beta2,
            constants.weight_decay,
            constants.epsilon,
        ))
    }
}

/// Leaves these leaves without gradients: the next backward pass gives them new ones instead of adding to zeros.
///
/// # Errors
/// When a tensor is no leaf, or libtorch fails.
pub fn drop_gradients(tensors: &[Tensor]) -> Result<(), BridgeError> {
    let handles = ffi::handles(tensors.iter().map(Some));
    // SAFETY: live tensors; what held their gradients elsewhere holds them on.
    unsafe { ffi::check(ffi::xlstm_optimizer_drop_gradients(handles.as_ptr(), handles.len())) }
}

fn missing(name: &'static str) -> BridgeError {
    BridgeError::Contract { name, expected: "a result".into(), found: "none".into() }
}

/// Euclidean norm of all tensors together: one number on their device, not waited for.
///
/// # Errors
/// When there is no tensor, or libtorch fails.
pub fn norm(tensors: &[Tensor]) -> Result<Tensor, BridgeError> {
    let handles = ffi::handles(tensors.iter().map(Some));
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors, and a place for the result, which is ours.
    let result = unsafe {
        ffi::check(ffi::xlstm_optimizer_norm(handles.as_ptr(), handles.len(), &raw mut out))?;
        ffi::own(out)
    };
    result.ok_or_else(|| missing("norm"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_norm_over_several_tensors_is_that_of_all_numbers() {
        let tensors =
            [Tensor::from_slice(&[3.0_f32, 0.0]), Tensor::from_slice(&[[4.0_f32], [12.0]].concat())];
        assert!((norm(&tensors).unwrap().double_value(&[]) - 13.0).abs() < 1e-6);
    }

    #[test]
    fn an_update_is_that_of_the_formula() {
        let options = (Kind::Float, Device::Cpu);
        let [p, g, m, v] = [2.0, 0.5, 0.0, 0.0].map(|value| vec![Tensor::full([3], value, options)]);
        let number = |value: f32| Tensor::from(value);
        let (step, scale, learning_rate, skip) = (number(1.0), number(2.0), number(0.1), number(0.0));
        let tensors = AdamWTensors {
            parameters: &p,
            gradients: &g,
            first: &m,
            second: &v,
            step: &step,
            scale: &scale,
            learning_rate: &learning_rate,
            skip: &skip,
        };
        let constants = AdamWConstants { beta1: 0.9, beta2: 0.95, weight_decay: 0.1, epsilon: 1e-8 };
        adamw(&tensors, &constants).unwrap();
        // After one step the corrected moments are g and g²: p (1 - lr·wd) - lr.
        let expected = 2.0 * 0.99 - 0.1;
        assert!((p[0].double_value(&[0]) - expected).abs() < 1e-5);
        adamw(&AdamWTensors { skip: &number(1.0), ..tensors }, &constants).unwrap();
        assert!((p[0].double_value(&[0]) - expected).abs() < 1e-5, "a skipped update changes nothing");
        let short = AdamWTensors { gradients: &[], ..tensors };
        assert!(adamw(&short, &constants).unwrap_err().to_string().contains("1 tensors in each list"));
    }
}

//! Functions whose backward pass is written in Rust, inside libtorch's autograd.
//!
//! ```text
//!   inputs ──► forward (Rust, gradients off) ──► outputs, saved
//!                                                   │
//!   gradients of inputs ◄── backward (Rust) ◄── node of libtorch's graph ◄── gradients of outputs
//! ```
//!
//! The forward closure computes with gradients off and says which tensors the backward pass needs. libtorch keeps
//! them as it keeps its own (a saved input that is changed in place is an error; memory is freed once the node has
//! run). The backward closure runs on whichever thread the engine uses. An error or a panic in it ends the backward
//! call with that message. A second derivative is refused, never silently wrong.
//!
//! [`node`] is the one to use: tensors have names ([`crate::named`]). [`custom_function`] is for a number of tensors
//! that only the run knows, as in [`checkpoint`].

use crate::ffi::{self, Handle};
use crate::named::{Named, Saved};
use crate::{BoxError, BridgeError};
use std::any::Any;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use tch::Tensor;

/// What a forward pass returns.
pub struct Forward {
    /// Results, floating-point, none of them one of the inputs.
    pub outputs: Vec<Tensor>,
    /// What the backward pass needs: inputs, outputs or others, handed back in this order. May be left empty when
    /// the closure was told that nothing is recorded.
    pub saved: Vec<Tensor>,
}

/// What a backward pass is given.
pub struct Backward {
    /// Gradients of the outputs; `None` where nothing depends on that output.
    pub gradients: Vec<Option<Tensor>>,
    /// The tensors of [`Forward::saved`].
    pub saved: Vec<Tensor>,
    /// For each input, whether its gradient is wanted. Computing others is a waste, not an error.
    pub needs_gradient: Vec<bool>,
}

type BackwardClosure = dyn Fn(&Backward) -> Result<Vec<Option<Tensor>>, BoxError> + Send;

/// What the node owns: one backward pass at a time runs in it.
struct NodeContext(Mutex<Box<BackwardClosure>>);

/// A function of the graph whose tensors have names: run `forward` and record `backward` as its derivative.
///
/// `forward` is told whether the call is recorded (gradients are on and an input asks for one), and returns its
/// outputs (floating-point, none of them one of the inputs) and what the backward pass needs. `backward` is given the
/// saved tensors, the gradients of the outputs (`None` where nothing depends on that output) and, for each input,
/// whether its gradient is wanted; it returns the inputs' gradients, `None` for those that have none. Computing one
/// that is not wanted is a waste, not an error.
///
/// # Errors
/// What `forward` returns, or libtorch's complaint about outputs (not floating-point, one of the inputs).
pub fn node<'a, I, O, S, F, B>(
    name: &'static str,
    inputs: I,
    forward: F,
    backward: B,
) -> Result<O, BridgeError>
where
    I: Named<Option<&'a Tensor>>,
    O: Named<Tensor>,
    S: Saved,
    F: FnOnce(bool) -> Result<(O, S), BoxError>,
    B: Fn(S, O::As<Option<Tensor>>, I::As<bool>) -> Result<I::As<Option<Tensor>>, BoxError> + Send + 'static,
{
    let input_handles = ffi::handles(inputs.into_values());
    let recorded = is_recorded(&input_handles);
    let (outputs, saved) =
        tch::no_grad(|| forward(recorded)).map_err(|source| BridgeError::Forward { name, source })?;
    if !recorded {
        return Ok(outputs);
    }
    let mut tensors = Vec::new();
    saved.store(&mut tensors);
    let present: Vec<bool> = tensors.iter().map(Option::is_some).collect();
    let tensors: Vec<Tensor> = tensors.into_iter().flatten().collect();
    let closure = move |context: &Backward| {
        let mut left = context.saved.iter().map(Tensor::shallow_clone);
        let mut all = present.iter().map(|&present| if present { left.next() } else { None });
        let saved = S::load(&mut all).ok_or("a saved tensor is missing")?;
        let mut gradients =
            context.gradients.iter().map(|gradient| gradient.as_ref().map(Tensor::shallow_clone));
        let gradients = Named::from_values(&mut gradients).ok_or("an output's gradient is missing")?;
        let wanted = Named::from_values(&mut context.needs_gradient.iter().copied());
        Ok(backward(saved, gradients, wanted.ok_or("an input is missing")?)?.into_values())
    };
    let outputs = attach(name, &input_handles, &outputs.into_values(), &tensors, Box::new(closure))?;
    let found = outputs.len();
    O::from_values(&mut outputs.into_iter()).ok_or_else(|| BridgeError::Contract {
        name,
        expected: format!("{} outputs", O::COUNT),
        found: found.to_string(),
    })
}

/// Whether gradients are on and an input asks for one.
fn is_recorded(inputs: &[*const Handle]) -> bool {
    // SAFETY: the handles are those of live tensors, or null.
    unsafe { ffi::xlstm_autograd_is_recorded(inputs.as_ptr(), inputs.len()) != 0 }
}

/// Run `forward` and record `backward` as its derivative.
///
/// `forward` is told whether the call is recorded (gradients are on and an input asks for one); if not, nothing
/// needs to be saved. `backward` returns one gradient for each input, `None` for those that have none.
///
/// # Errors
/// What `forward` returns, or libtorch's complaint about outputs (not floating-point, one of the inputs).
pub fn custom_function<F, B>(
    name: &'static str,
    inputs: &[Option<&Tensor>],
    forward: F,
    backward: B,
) -> Result<Vec<Tensor>, BridgeError>
where
    F: FnOnce(bool) -> Result<Forward, BoxError>,
    B: Fn(&Backward) -> Result<Vec<Option<Tensor>>, BoxError> + Send + 'static,
{
    let input_handles = ffi::handles(inputs.iter().copied());
    let recorded = is_recorded(&input_handles);
    let Forward { outputs, saved } =
        tch::no_grad(|| forward(recorded)).map_err(|source| BridgeError::Forward { name, source })?;
    if !recorded {
        return Ok(outputs);
    }
    attach(name, &input_handles, &outputs, &saved, Box::new(backward))
}

fn attach(
    name: &'static str,
    inputs: &[*const Handle],
    outputs: &[Tensor],
    saved: &[Tensor],
    backward: Box<BackwardClosure>,
) -> Result<Vec<Tensor>, BridgeError> {
    let text = CString::new(name).map_err(|_| BridgeError::Contract {
        name,
        expected: "a name without NUL".into(),
        found: name.into(),
    })?;
    let output_handles = ffi::handles(outputs.iter().map(Some));
    let saved_handles = ffi::handles(saved.iter().map(Some));
    let context = Box::into_raw(Box::new(NodeContext(Mutex::new(backward))));
    let mut results: Vec<*mut Handle> = vec![std::ptr::null_mut(); outputs.len()];
    // SAFETY: all handles are valid for the call, `results` has room for every output, and the node takes
    // `context` over (it calls `release_context` exactly once, also when attaching fails).
    unsafe {
        ffi::check(ffi::xlstm_autograd_attach(
            text.as_ptr(),
            inputs.as_ptr(),
            inputs.len(),
            output_handles.as_ptr(),
            output_handles.len(),
            saved_handles.as_ptr(),
            saved_handles.len(),
            context.cast(),
            run_backward,
            release_context,
            release_message,
            results.as_mut_ptr(),
        ))?;
        Ok(results.into_iter().filter_map(|handle| ffi::own(handle)).collect())
    }
}

/// Called by the node when it is destroyed.
unsafe extern "C" fn release_context(context: *mut c_void) {
    let context = context.cast::<NodeContext>();
    // A closure whose drop panics must not unwind into C++.
    // SAFETY: made by Box::into_raw in `attach`, released once.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(context) })));
}

/// Frees a message that [`run_backward`] returned.
unsafe extern "C" fn release_message(message: *mut c_char) {
    // SAFETY: made by CString::into_raw in `run_backward`.
    drop(unsafe { CString::from_raw(message) });
}

/// Called by the engine. Returns null, or a message that [`release_message`] frees.
unsafe extern "C" fn run_backward(
    context: *mut c_void,
    gradients: *const *const Handle,
    gradient_count: usize,
    saved: *const *const Handle,
    saved_count: usize,
    needs_gradient: *const u8,
    out_gradients: *mut *mut Handle,
    input_count: usize,
) -> *mut c_char {
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the node passes arrays of the stated lengths and the context that `attach` made.
        let (context, arguments, results) = unsafe {
            let gradients = borrow_all(gradients, gradient_count);
            let saved = borrow_all(saved, saved_count).into_iter().flatten().collect();
            let needs = slice(needs_gradient, input_count).iter().map(|&flag| flag != 0).collect();
            let arguments = Backward { gradients, saved, needs_gradient: needs };
            (
                &*context.cast::<NodeContext>(),
                arguments,
                std::slice::from_raw_parts_mut(out_gradients, input_count),
            )
        };
        let closure = context.0.lock().unwrap_or_else(PoisonError::into_inner);
        let computed = closure(&arguments).map_err(|error| error.to_string())?;
        if computed.len() != input_count {
            return Err(format!("returned {} gradients for {input_count} inputs", computed.len()));
        }
        for (slot, gradient) in results.iter_mut().zip(computed) {
            if let Some(mut gradient) = gradient {
                *slot = gradient.as_mut_ptr().cast::<Handle>();
                // C++ deletes the `at::Tensor` itself.
                std::mem::forget(gradient);
            }
        }
        Ok(())
    }));
    let message = match attempt {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(message)) => message,
        Err(panic) => format!("panicked: {}", panic_text(panic.as_ref())),
    };
    CString::new(message.replace('\0', " ")).unwrap_or_default().into_raw()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// # Safety
/// `data` points to `length` values, or `length` is zero.
unsafe fn slice<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if length == 0 {
        return &[];
    }
    // SAFETY: by the contract.
    unsafe { std::slice::from_raw_parts(data, length) }
}

/// New references to the tensors behind borrowed pointers.
///
/// # Safety
/// `handles` points to `count` pointers, each null or to a live `at::Tensor`.
unsafe fn borrow_all(handles: *const *const Handle, count: usize) -> Vec<Option<Tensor>> {
    // SAFETY: by the contract.
    let handles = unsafe { slice(handles, count) };
    let clone = |handle: &*const Handle| {
        if handle.is_null() {
            return None;
        }
        // SAFETY: a live tensor; tch makes its own reference.
        Some(unsafe { Tensor::clone_from_ptr(handle.cast_mut().cast()) })
    };
    handles.iter().map(clone).collect()
}

/// Back-propagate from `outputs` with the given gradients (`None`: one, for a scalar) into the leaves' `.grad()`.
///
/// # Errors
/// libtorch's complaint, or that of a custom function on the way.
pub fn backward(
    outputs: &[&Tensor],
    gradients: &[Option<&Tensor>],
    retain_graph: bool,
) -> Result<(), BridgeError> {
    same_length(outputs, gradients)?;
    let output_handles = ffi::handles(outputs.iter().copied().map(Some));
    let gradient_handles = ffi::handles(gradients.iter().copied());
    // SAFETY: handles of equal number, valid for the call.
    unsafe {
        ffi::check(ffi::xlstm_autograd_backward(
            output_handles.as_ptr(),
            gradient_handles.as_ptr(),
            outputs.len(),
            i32::from(retain_graph),
        ))
    }
}

/// Gradients of `outputs`, weighted by `gradients`, with respect to `inputs`; `None` where an input plays no part.
///
/// # Errors
/// libtorch's complaint, or that of a custom function on the way.
pub fn gradients(
    outputs: &[&Tensor],
    gradients: &[Option<&Tensor>],
    inputs: &[&Tensor],
    retain_graph: bool,
) -> Result<Vec<Option<Tensor>>, BridgeError> {
    same_length(outputs, gradients)?;
    let output_handles = ffi::handles(outputs.iter().copied().map(Some));
    let gradient_handles = ffi::handles(gradients.iter().copied());
    let input_handles = ffi::handles(inputs.iter().copied().map(Some));
    let mut results: Vec<*mut Handle> = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: handles valid for the call, `results` has room for every input and is filled with owned tensors.
    unsafe {
        ffi::check(ffi::xlstm_autograd_gradients(
            output_handles.as_ptr(),
            gradient_handles.as_ptr(),
            outputs.len(),
            input_handles.as_ptr(),
            inputs.len(),
            i32::from(retain_graph),
            results.as_mut_ptr(),
        ))?;
        Ok(results.into_iter().map(|handle| ffi::own(handle)).collect())
    }
}

fn same_length(outputs: &[&Tensor], gradients: &[Option<&Tensor>]) -> Result<(), BridgeError> {
    if outputs.len() == gradients.len() {
        return Ok(());
    }
    Err(BridgeError::Contract {
        name: "backward",
        expected: format!("{} gradients, one for each output", outputs.len()),
        found: gradients.len().to_string(),
    })
}

/// Activation checkpointing: run `function` without keeping its intermediate values, and run it again when the
/// backward pass comes by.
///
/// `function` has to give the same results both times. Tensors that it captures (parameters) get their gradients
/// as usual. At least one of `inputs` must ask for a gradient, or nothing is recorded, the captured ones included.
///
/// # Errors
/// What `function` returns.
pub fn checkpoint<F>(name: &'static str, inputs: &[&Tensor], function: F) -> Result<Vec<Tensor>, BridgeError>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>, BoxError> + Send + 'static,
{
    let arguments: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
    let function = std::sync::Arc::new(Mutex::new(function));
    let again = function.clone();
    let optional: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
    custom_function(
        name,
        &optional,
        move |_| {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Forward { outputs: function(&arguments)?, saved: arguments })
        },
        move |context| {
            let function = again.lock().unwrap_or_else(PoisonError::into_inner);
            recompute(&*function, context)
        },
    )
}

/// The backward pass of [`checkpoint`]: forward again with gradients on, then backward through that.
fn recompute<F>(function: &F, context: &Backward) -> Result<Vec<Option<Tensor>>, BoxError>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>, BoxError>,
{
    let inputs: Vec<Tensor> = context
        .saved
        .iter()
        .zip(&context.needs_gradient)
        .map(|(tensor, &needed)| {
            let fresh = tensor.detach();
            if needed { fresh.set_requires_grad(true) } else { fresh }
        })
        .collect();
    let outputs = tch::with_grad(|| function(&inputs))?;
    let (reached, weights): (Vec<&Tensor>, Vec<Option<&Tensor>>) = outputs
        .iter()
        .zip(&context.gradients)
        .filter(|(output, gradient)| output.requires_grad() && gradient.is_some())
        .map(|(output, gradient)| (output, gradient.as_ref()))
        .unzip();
    if !reached.is_empty() {
        backward(&reached, &weights, false)?;
    }
    Ok(inputs.iter().map(|input| Some(input.grad()).filter(Tensor::defined)).collect())
}

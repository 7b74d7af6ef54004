//! Times the CPU kernels, one run for each line on standard input, so that a peer can be timed in turns with them.
//!
//! Usage: bench_cells CELL SIZES… [--chunk N] [--threads N], with CELL and SIZES
//!
//! ```text
//! mlstm          BATCH HEADS TIME WIDTH
//! slstm          BATCH HEADS TIME WIDTH        (WIDTH of a head)
//! lstm           BATCH TIME WIDTH              (a layer: one product, and the cell)
//! lstm-library   BATCH TIME WIDTH              (the same by libtorch's own LSTM)
//! linear         ROWS INPUTS OUTPUTS
//! cross_entropy  ROWS WIDTH VOCABULARY
//! block          BATCH TIME WIDTH              (a whole mLSTM block with 4 heads, as in the paper's models)
//! ```
//!
//! First one JSON object that says what runs where; then, for every line read, one with the seconds of a forward and
//! of a backward pass, and the largest resident size. Without a peer: `yes | head -20 | bench_cells mlstm 1 4 2048 384`.
#![allow(non_snake_case, reason = "shape suffixes are capitals")]
#![allow(clippy::print_stdout, reason = "results are data")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use xlstm_bridge::runtime;
use xlstm_kernels::conv::{ConvInput, causal_conv_silu};
use xlstm_kernels::cpu::instruction_set;
use xlstm_kernels::cross_entropy::{CrossEntropyOptions, projected_cross_entropy};
use xlstm_kernels::gates::{GateWeights, MlstmOutputInput, mlstm_output};
use xlstm_kernels::linear::linear;
use xlstm_kernels::lstm::{LstmInput, LstmKernel, LstmLayer, lstm, lstm_layer};
use xlstm_kernels::mlstm::{MlstmInput, MlstmOptions, mlstm};
use xlstm_kernels::norm::layer_norm;
use xlstm_kernels::projections::{Projections, ProjectionsInput, mlstm_projections};
use xlstm_kernels::slstm::{SlstmInput, SlstmOptions, slstm};

type AnyError = Box<dyn Error + Send + Sync>;

/// Returns the scalar to differentiate.
type Pass = Box<dyn Fn() -> Result<Tensor, AnyError>>;

fn main() -> Result<(), AnyError> {
    let mut words = std::env::args().skip(1);
    let cell =
        words.next().ok_or("no cell named: mlstm, slstm, lstm, lstm-library, linear or cross_entropy")?;
    let (mut sizes, mut chunk, mut threads) = (Vec::new(), None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--chunk" => chunk = words.next().map(|word| word.parse()).transpose()?,
            "--threads" => threads = words.next().map(|word| word.parse()).transpose()?,
            size => sizes.push(size.parse::<i64>()?),
        }
    }
    let runtime = runtime::initialize(threads)?;
    let (leaves, pass) = prepare(&cell, &sizes, chunk)?;
    println!(
        "{{\"cell\":\"{cell}\",\"sizes\":{sizes:?},\"threads\":{},\"instruction_set\":\"{}\",\"libtorch\":\"{}\"}}",
        runtime.threads,
        instruction_set(),
        runtime::LIBTORCH_VERSION
    );
    for line in std::io::stdin().lock().lines() {
        line?;
        measure(&leaves, &pass)?;
    }
    Ok(())
}

fn measure(leaves: &[Tensor], pass: &Pass) -> Result<(), AnyError> {
    for leaf in leaves {
        leaf.shallow_clone().zero_grad();
    }
    let start = Instant::now();
    let loss = pass()?;
    let forward = start.elapsed().as_secs_f64();
    loss.f_backward()?;
    let both = start.elapsed().as_secs_f64();
    let peak = runtime::memory().peak_resident;
    println!("{{\"forward\":{forward:.6},\"backward\":{:.6},\"peak_resident\":{peak}}}", both - forward);
    std::io::stdout().flush()?;
    Ok(())
}

fn leaf(size: &[i64], scale: f64, shift: f64) -> Tensor {
    let normal = Tensor::randn(size, (Kind::Float, Device::Cpu)) * scale + shift;
    normal.detach().set_requires_grad(true)
}

fn prepare(cell: &str, sizes: &[i64], chunk: Option<usize>) -> Result<(Vec<Tensor>, Pass), AnyError> {
    match (cell, sizes) {
        ("mlstm", &[batch, heads, time, width]) => Ok(prepare_mlstm(batch, heads, time, width, chunk)),
        ("slstm", &[batch, heads, time, width]) => Ok(prepare_slstm(batch, heads, time, width)),
        ("lstm" | "lstm-library", &[batch, time, width]) => {
            Ok(prepare_lstm(batch, time, width, cell == "lstm-library"))
        }
        ("linear", &[rows, inputs, outputs]) => {
            let leaves = vec![leaf(&[rows, inputs], 1.0, 0.0), leaf(&[outputs, inputs], 0.02, 0.0)];
            let [x, w] = [0, 1].map(|index: usize| leaves[index].shallow_clone());
            Ok((leaves, Box::new(move || Ok(linear(&x, &w, None)?.sum(Kind::Float)))))
        }
        ("cross_entropy", &[rows, width, vocabulary]) => {
            let leaves = vec![leaf(&[rows, width], 1.0, 0.0), leaf(&[vocabulary, width], 0.02, 0.0)];
            let [x, w] = [0, 1].map(|index: usize| leaves[index].shallow_clone());
            let targets = Tensor::randint(vocabulary, [rows], (Kind::Int64, Device::Cpu));
            let options = CrossEntropyOptions { chunk_rows: chunk, ..CrossEntropyOptions::default() };
            Ok((leaves, Box::new(move || Ok(projected_cross_entropy(&x, &w, &targets, &options)?.loss))))
        }
        ("block", &[batch, time, width]) => Ok(prepare_block(batch, time, width)),
        _ => Err(format!("unknown cell or number of sizes: {cell} {sizes:?}").into()),
    }
}

fn prepare_mlstm(batch: i64, heads: i64, time: i64, width: i64, chunk: Option<usize>) -> (Vec<Tensor>, Pass) {
    let size = [batch, time, heads, width];
    let mut leaves: Vec<Tensor> = (0..3).map(|_| leaf(&size, 1.0, 0.0)).collect();
    leaves.push(leaf(&size[..3], 1.0, 0.0));
    leaves.push(leaf(&size[..3], 1.0, 3.0));
    let inputs: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    let options = MlstmOptions { chunk, ..MlstmOptions::default() };
    let pass = move || {
        let input = MlstmInput {
            q_BTHK: &inputs[0],
            k_BTHK: &inputs[1],
            v_BTHV: &inputs[2],
            i_BTH: &inputs[3],
            f_BTH: &inputs[4],
            state: None,
            resets_BT: None,
        };
        Ok(mlstm(&input, &options)?.h_BTHV.sum(Kind::Float))
    };
    (leaves, Box::new(pass))
}

fn prepare_slstm(batch: i64, heads: i64, time: i64, width: i64) -> (Vec<Tensor>, Pass) {
    let leaves = vec![
        leaf(&[batch, time, 4, heads, width], 1.0, 0.0),
        leaf(&[heads, width, 4, width], 0.05, 0.0),
        leaf(&[4, heads, width], 1.0, 0.0),
    ];
    let inputs: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    let pass = move || {
        let input = SlstmInput {
            x_BTGHE: &inputs[0],
            recurrent_HEGE: &inputs[1],
            bias_GHE: &inputs[2],
            state: None,
            resets_BT: None,
        };
        Ok(slstm(&input, &SlstmOptions::default())?.y_BTHE.sum(Kind::Float))
    };
    (leaves, Box::new(pass))
}

/// A layer of LSTM with one dense head.
fn prepare_lstm(batch: i64, time: i64, width: i64, library: bool) -> (Vec<Tensor>, Pass) {
    let scale = (width as f64).powf(-0.5);
    let leaves = vec![
        leaf(&[batch, time, width], 1.0, 0.0),
        leaf(&[4 * width, width], scale, 0.0),
        leaf(&[4 * width, width], scale, 0.0),
        leaf(&[4 * width], scale, 0.0),
        leaf(&[4 * width], scale, 0.0),
    ];
    let inputs: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    let pass = move || -> Result<Tensor, AnyError> {
        let all @ [x, weight_ih, weight_hh, bias_ih, bias_hh] =
            [0, 1, 2, 3, 4].map(|index: usize| &inputs[index]);
        if library {
            return Ok(lstm_layer(&LstmLayer::of(all), Kind::Float, false)?.h_BTHE.sum(Kind::Float));
        }
        let input = LstmInput {
            x_BTGHE: &linear(x, weight_ih, None)?.view([batch, time, 4, 1, width]),
            recurrent_HEGE: &weight_hh.view([4, width, width]).permute([2, 0, 1]).unsqueeze(0),
            bias_GHE: &(bias_ih + bias_hh).view([4, 1, width]),
            state: None,
            resets_BT: None,
        };
        Ok(lstm(&input, LstmKernel::Auto)?.h_BTHE.sum(Kind::Float))
    };
    (leaves, Box::new(pass))
}

/// An mLSTM block: norm, up-projection, convolution, q, k, v, gates, cell, output gate, down-projection, residual.
fn prepare_block(batch: i64, time: i64, width: i64) -> (Vec<Tensor>, Pass) {
    let (heads, inner) = (4, 2 * width);
    let scale = (0.4 / width as f64).sqrt();
    let weight = |size: &[i64]| leaf(size, scale, 0.0);
    let leaves = vec![
        leaf(&[batch, time, width], 1.0, 0.0),
        weight(&[width]),
        weight(&[2 * inner, width]),
        weight(&[inner, 1, 4]),
        weight(&[inner]),
        weight(&[inner / 4, 4, 4]),
        weight(&[inner / 4, 4, 4]),
        weight(&[inner / 4, 4, 4]),
        weight(&[heads, 3 * inner]),
        weight(&[heads]),
        weight(&[heads, 3 * inner]),
        leaf(&[heads], 0.1, 4.0),
        weight(&[inner]),
        leaf(&[inner], 0.0, 1.0),
        weight(&[width, inner]),
    ];
    let inputs: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    (leaves, Box::new(move || Ok(block(&inputs, heads)?.sum(Kind::Float))))
}

fn block(inputs: &[Tensor], heads: i64) -> Result<Tensor, AnyError> {
    let [x, norm, up, conv_weight, conv_bias, q, k, v, iw, ib, fw, fb, outnorm, skip, down] = inputs else {
        return Err("15 tensors make a block".into());
    };
    let projected = linear(&layer_norm(x, norm, 1e-5)?, up, None)?;
    let halves = projected.f_chunk(2, -1)?;
    let convolution = ConvInput {
        x_BTD: &halves[0],
        weight_D1W: conv_weight,
        bias_D: Some(conv_bias),
        state: None,
        resets_BT: None,
    };
    let c = causal_conv_silu(&convolution)?.y_BTD;
    let weights = GateWeights { input_weight: iw, input_bias: ib, forget_weight: fw, forget_bias: fb };
    let input = ProjectionsInput { c_BTD: &c, a_BTD: &halves[0], blocks_NOI: [q, k, v], gates: weights };
    let Projections { qkv_BTD: [q, k, v], i_BTH, f_BTH } = mlstm_projections(&input)?;
    let size = q.size();
    let by_head = |tensor: &Tensor| tensor.f_view([size[0], size[1], heads, size[2] / heads]);
    let input = MlstmInput {
        q_BTHK: &by_head(&q)?,
        k_BTHK: &by_head(&k)?,
        v_BTHV: &by_head(&v)?,
        i_BTH: &i_BTH,
        f_BTH: &f_BTH,
        state: None,
        resets_BT: None,
    };
    let h_BTHE = mlstm(&input, &MlstmOptions::default())?.h_BTHV;
    let output = MlstmOutputInput {
        h_BTHE: &h_BTHE,
        norm_weight_D: outnorm,
        skip_D: skip,
        conv_BTD: &c,
        z_BTD: &halves[1],
    };
    Ok(x + linear(&mlstm_output(&output, 1e-5)?, down, None)?)
}

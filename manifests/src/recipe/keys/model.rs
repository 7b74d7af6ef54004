//! Keys of `[model]`, by architecture.

use super::Key;

const UNTIED: &[&str] = &[
    "xlstm",
    "llama",
    "retnet",
    "retnet-block",
    "gla",
    "hgrn",
    "hgrn2",
    "mamba",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "h3",
    "hyena",
    "lstm",
];
const XLSTM: &[&str] = &["xlstm"];
const LINEAR: &[&str] = &["retnet", "gla", "hgrn", "hgrn2"];
const RWKV: &[&str] = &["rwkv4", "rwkv5", "rwkv6"];
const TRANSFORMERS: &[&str] = &["llama", "gpt2"];

/// Shared keys first.
pub(super) const KEYS: &[Key] = &[
    Key::new("model.architecture", "Which model; naming another one starts from its own defaults.")
        .words(super::super::ModelConfig::ARCHITECTURES),
    Key::new("model.vocabulary_size", "Rows of the token embedding and of the output projection; at least the tokenizer's ids.")
        .unit("token ids"),
    Key::new("model.embedding_dim", "Width of the residual.").unit("numbers"),
    Key::new("model.blocks", "Residual blocks, or layers.").unit("blocks"),
    Key::new(
        "model.tied_embedding",
        "Whether the output projection is the token embedding (weight tying); it then does not decay. GPT-2 always is so.",
    )
    .only(UNTIED),
    Key::new(
        "model.input_width",
        "Numbers of a position, of a model that reads rows of numbers and predicts one number by squared error.",
    )
    .unit("numbers")
    .zero("inputs are tokens")
    .only(&["xlstm", "llama", "lstm"]),
    // xLSTM
    Key::new("model.slstm_at", "Which blocks are sLSTM blocks; all others are mLSTM blocks.")
        .counted_from("block 0")
        .only(XLSTM),
    Key::new("model.mlstm.heads", "Heads of an mLSTM block.").unit("heads").only(XLSTM),
    Key::new(
        "model.mlstm.block",
        "Where an mLSTM block projects up: before the cell (figure 11), or after it in a feed-forward (table 8).",
    )
    .words(&["pre-up-projection", "post-up-projection"])
    .only(XLSTM),
    Key::new("model.mlstm.projection_factor", "Width inside a pre-up-projection block, rounded up to a multiple of 64.")
        .unit("multiples of the residual's width")
        .only(XLSTM),
    Key::new("model.mlstm.convolution", "Taps of the causal convolution.").unit("taps").zero("no convolution").only(XLSTM),
    Key::new("model.mlstm.qkv_block_size", "Size of the diagonal blocks of the query, key and value projections.")
        .unit("numbers")
        .only(XLSTM),
    Key::new("model.mlstm.feed_forward_factor", "Width of a post-up-projection block's feed-forward, rounded up to a multiple of 64.")
        .unit("multiples of the residual's width")
        .only(XLSTM),
    Key::new("model.mlstm.input_gate_input_dependent", "Whether the input gate sees the input, or is its bias alone.")
        .only(XLSTM),
    Key::new("model.mlstm.input_gate_bias_learnable", "Whether the input gate's bias is trained.").only(XLSTM),
    Key::new(
        "model.mlstm.input_gate_bias",
        "First value of the input gate's bias: normal with standard deviation 0.1, or zero.",
    )
    .words(&["normal", "zero"])
    .only(XLSTM),
    Key::new("model.mlstm.forget_gate_input_dependent", "Whether the forget gate sees the input, or is its bias alone.")
        .only(XLSTM),
    Key::new("model.mlstm.forget_gate_bias_learnable", "Whether the forget gate's bias is trained.").only(XLSTM),
    Key::new(
        "model.mlstm.forget_gate_bias",
        "First values of the forget gate's bias, equidistant over the heads; [inf, inf] never forgets.",
    )
    .only(XLSTM),
    Key::new("model.slstm.function", "The cell of an sLSTM block: sLSTM, or LSTM for comparison.")
        .words(&["slstm", "lstm"])
        .only(XLSTM),
    Key::new("model.slstm.heads", "Heads of an sLSTM block.").unit("heads").only(XLSTM),
    Key::new("model.slstm.convolution", "Taps of the causal convolution before the input and forget gates.")
        .unit("taps")
        .zero("no convolution")
        .only(XLSTM),
    Key::new("model.slstm.gate_weights", "Shape of the gates' input weights: a block for each head, or full matrices.")
        .words(&["headwise", "dense"])
        .only(XLSTM),
    Key::new("model.slstm.feed_forward_factor", "Width of the feed-forward, rounded up to a multiple of 64.")
        .unit("multiples of the residual's width")
        .only(XLSTM),
    Key::new(
        "model.slstm.forget_gate",
        "What the forget gate does with its sum; the published runs have the sigmoid, equation 14 allows both.",
    )
    .words(&["sigmoid", "exponential"])
    .only(XLSTM),
    Key::new("model.slstm.recurrent_init", "First values of the recurrent weights.")
        .words(&["zeros", "standard"])
        .only(XLSTM),
    Key::new("model.slstm.bias_init", "First values of the gates' biases.")
        .words(&["powerlaw-blockdependent", "small-init", "standard", "zeros"])
        .only(XLSTM),
    Key::new("model.slstm.weight_init", "First values of the gates' input weights.")
        .words(&["small", "standard"])
        .only(XLSTM),
    Key::new(
        "model.slstm.recurrent_gradient_clip",
        "Bound on each number of the gradient that goes back through the recurrence (the paper says 10, its code has none).",
    )
    .zero("no bound")
    .only(XLSTM),
    // All others
    Key::new("model.heads", "Attention heads, each with its own keys and values.").unit("heads").only(TRANSFORMERS),
    Key::new("model.heads", "Heads of the mixer.").unit("heads").zero("one for every 128 of the width").only(LINEAR),
    Key::new("model.heads", "Heads of retention.").unit("heads").only(&["retnet-block"]),
    Key::new("model.heads", "Heads of the recurrent matrices, which are block-diagonal with more than one.")
        .unit("heads")
        .only(&["lstm"]),
    Key::new("model.feed_forward_dim", "Width of the feed-forward.")
        .unit("numbers")
        .zero("8/3 of the residual's width, rounded up to a multiple of 64")
        .only(&["llama"]),
    Key::new("model.feed_forward_dim", "Width of the feed-forward.")
        .unit("numbers")
        .zero("four times the residual's width")
        .only(&["gpt2", "retnet-block", "h3", "hyena", "lstm"]),
    Key::new("model.feed_forward_dim", "Width of the feed-forward.")
        .unit("numbers")
        .zero("derived from the residual's width as flash-linear-attention does")
        .only(LINEAR),
    Key::new("model.feed_forward_dim", "Width of the channel mix.")
        .unit("numbers")
        .zero("four times the residual's width, RWKV-6 3.5 times, rounded down to a multiple of 32")
        .only(RWKV),
    Key::new("model.positions", "Learned positions: no context can be longer.").unit("tokens").only(&["gpt2"]),
    Key::new("model.positions", "The longest text that the filters reach over.").unit("tokens").only(&["hyena"]),
    Key::new("model.gelu", "Form of the GELU: by tanh as GPT-2's code has it, or by the error function.")
        .words(&["tanh", "erf"])
        .only(&["gpt2"]),
    Key::new("model.rotary_base", "Base of the rotary angles.").only(&["llama"]),
    Key::new("model.norm_epsilon", "Added to the mean square in the norms.")
        .only(&["llama", "retnet", "gla", "hgrn", "hgrn2", "mamba"]),
    Key::new("model.weight_init", "First values of the matrices.").words(&["small", "normal"]).only(&["llama"]),
    Key::new(
        "model.swapped_norm",
        "Normalize the gate's input and activate the cell's output, as flash-linear-attention did until July 2024.",
    )
    .only(&["hgrn"]),
    Key::new("model.head_dim", "Width of a head; RWKV-4 has none.").unit("numbers").only(RWKV),
    Key::new("model.state_dim", "Taps of the shift, and twice the modes of the diagonal system.")
        .unit("numbers")
        .only(&["h3"]),
    Key::new("model.state_dim", "States of each inner channel.").unit("numbers").only(&["mamba"]),
    Key::new("model.expansion", "Inner channels for each of the residual's.").only(&["mamba"]),
    Key::new("model.order", "Projections less one: 2 has one long convolution.").only(&["hyena"]),
    Key::new("model.filter_dim", "Width of the filter network.").unit("numbers").only(&["hyena"]),
    Key::new("model.filter_layers", "Layers of the filter network between the first and the last.")
        .unit("layers")
        .only(&["hyena"]),
    Key::new("model.position_features", "Features of a position: the time itself, and pairs of cosine and sine.")
        .unit("numbers")
        .only(&["hyena"]),
    Key::new("model.sine_frequency", "Factor inside the filter network's sines, at the start.").only(&["hyena"]),
    Key::new("model.form", "How LSTM layers are put together: stacked, on a residual, or with feed-forwards.")
        .words(&["plain", "residual", "up-projection", "block"])
        .only(&["lstm"]),
];

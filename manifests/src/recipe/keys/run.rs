//! Keys outside `[model]`.

use super::Key;

/// What a recipe is called.
pub(super) const NAMES: &[Key] = &[
    Key::new(
        "name",
        "The recipe's name: its file, and its variant behind a slash. A run's folder is called by it.",
    ),
    Key::new("description", "One sentence for people."),
    Key::new("paper", "The place in the paper, and the published result where there is one."),
];

/// Sections in the order of the structures.
pub(super) const KEYS: &[Key] = &[
    Key::new("training.context_length", "Length of a sequence; it divides the dataset's row length.").unit("tokens"),
    Key::new(
        "training.tokens_per_step",
        "Size of an optimizer step over all ranks; a multiple of the dataset's row length.",
    )
    .unit("tokens"),
    Key::new("training.micro_batch_rows", "Rows that one rank computes at a time.")
        .unit("rows")
        .zero("as many as fit on the device"),
    Key::new("training.steps", "Length of the run.")
        .zero("the first parameters are measured and saved").unit("optimizer steps").counted_from("1; step 0 is the untrained model"),
    Key::new("training.seed", "The seed of everything that is drawn and has no seed of its own below."),
    Key::new("training.initialization_seed", "Seed of the parameters' first values. -1: training.seed."),
    Key::new("training.order_seed", "Seed of the order of rows. -1: training.seed."),
    Key::new("training.dropout_seed", "Seed of dropout. -1: training.seed."),
    Key::new(
        "training.precision",
        "Type of the matrix products; parameters, optimizer and reductions stay in float32. tf32 rounds the operands of \
         products to ten bits of mantissa on a GPU.",
    )
    .words(&["float32", "tf32", "bfloat16"]),
    Key::new(
        "training.activation_checkpointing",
        "Keep only each block's input, and compute the block again in the backward pass: less memory, a third more work.",
    ),
    Key::new(
        "training.reset_at_document_boundaries",
        "Clear all states at the start of each document, which the paper does not.",
    ),
    Key::new("training.embedding_dropout", "Share of the embedded tokens' numbers that are set to zero in training.")
        .zero("no dropout"),
    Key::new(
        "training.dropout",
        "Share of the numbers of each branch that are set to zero in training, before it is added to the residual.",
    )
    .zero("no dropout"),
    Key::new(
        "training.z_loss",
        "Weight of the squared logarithm of the softmax's sum in what is minimized; logged losses are without it.",
    )
    .zero("no z-loss"),
    Key::new("optimizer.learning_rate", "Highest learning rate of the schedule."),
    Key::new("optimizer.beta1", "Decay of the first moment."),
    Key::new("optimizer.beta2", "Decay of the second moment."),
    Key::new("optimizer.epsilon", "Added to the root of the second moment."),
    Key::new("optimizer.weight_decay", "Decoupled weight decay of matrices other than the token embedding."),
    Key::new("optimizer.clip_norm", "Largest norm of all gradients together.").zero("no clipping"),
    Key::new(
        "schedule.shape",
        "What follows the warm-up: half a cosine, a straight line down, a constant, or a constant and then a line down.",
    )
    .words(&["cosine", "linear", "constant", "warmup-stable-decay"]),
    Key::new("schedule.warmup_steps", "Length of the linear rise from 0.").unit("optimizer steps").zero("no warm-up"),
    Key::new("schedule.stable_until", "The step at which warmup-stable-decay begins to decay.")
        .unit("optimizer steps")
        .zero("nine tenths of the way to the end of the decay")
        .counted_from("the start of the run, warm-up included"),
    Key::new("schedule.decay_steps", "The step at which the decay ends.")
        .unit("optimizer steps")
        .zero("training.steps")
        .counted_from("the start of the run, warm-up included"),
    Key::new("schedule.final_fraction", "Learning rate after the decay, as a fraction of the highest."),
    Key::new("validation.every_steps", "Steps between two validations.")
        .unit("optimizer steps")
        .zero("only at step 0 and at the end, which are measured in any case"),
    Key::new("validation.rows", "Length of the measured prefix of the split.").unit("rows").zero("all of it"),
    Key::new(
        "validation.stop_at_accuracy",
        "End the run after a validation with at least this accuracy (a share from 0 to 1, where targets are stored).",
    )
    .zero("never"),
    Key::new(
        "validation.patience",
        "End the run after so many validations in a row without a loss below the lowest before.",
    )
    .unit("validations")
    .zero("never"),
    Key::new("checkpoint.every_steps", "Steps between two checkpoints.")
        .unit("optimizer steps")
        .zero("only at the end and when told to stop"),
    Key::new("checkpoint.every_minutes", "Time between two checkpoints, beside those by steps.")
        .unit("minutes")
        .zero("none by time"),
    Key::new("checkpoint.keep_last", "The newest checkpoints that are kept.").unit("checkpoints"),
    Key::new("checkpoint.keep_every_steps", "Checkpoints at multiples of this step are kept for good.")
        .unit("optimizer steps")
        .zero("none"),
    Key::new(
        "checkpoint.keep_best",
        "Whether to save after each validation with the lowest loss so far, and keep that checkpoint (RUN/checkpoints/best).",
    ),
    Key::new("logging.every_steps", "Steps between two lines of metrics.jsonl.").unit("optimizer steps"),
    Key::new("logging.tensorboard", "Whether to write TensorBoard event files beside metrics.jsonl."),
    Key::new(
        "logging.rows",
        "Whether each rank writes which rows it took, step by step, into rows/, to compare with xlstm-data trace --run.",
    ),
];

//! The paper's tables and figures, and what makes each of them here.

/// One table or figure of the paper (arXiv 2405.04517v2).
pub(super) struct Experiment {
    /// Where it stands.
    pub(super) place: &'static str,
    /// What it shows.
    pub(super) what: &'static str,
    /// Recipes whose names begin so make its models.
    pub(super) recipes: &'static [&'static str],
    /// The kind of evaluation that gives its figures: one of `kind_of`'s words.
    pub(super) kind: &'static str,
    /// Commands after training, with RUN for the run's folder.
    pub(super) commands: &'static [&'static str],
    /// What of it is not here, and why.
    pub(super) without: &'static str,
    /// Sweeps whose results stand below the recipes, small twins among them.
    pub(super) sweeps: &'static [&'static str],
    /// The recipe whose variants are the same models made small; their reports stand below the recipes.
    pub(super) twin: Option<Twin>,
}

/// An experiment made small.
pub(super) struct Twin {
    /// The recipe, without its variant.
    pub(super) recipe: &'static str,
    /// Variants that are the experiment's: one recipe may serve several tables. Empty: all.
    pub(super) variants: &'static [&'static str],
    /// Recipes of other twins that are also rows of this experiment: a recipe, and the variant whose row it is.
    pub(super) shared: &'static [(&'static str, &'static str)],
    /// What is not the paper's.
    pub(super) differs: &'static str,
}

const TABLE2_DIFFERS: &str = "half the width and blocks for 25M parameters beside the vocabulary, steps of 65,536 tokens, 62 million tokens of \
                              the text of `docs/results/table1-small` in place of 15 billion of SlimPajama, learning rate 1.5e-3";

const SLIMPAJAMA_15B: &str = "xlstm-data prepare slimpajama --split train --max-tokens 15B --exclude-set RedPajamaBook --out data/slimpajama-15b";
const SLIMPAJAMA: &str = "xlstm-data prepare slimpajama --out data/slimpajama";
const PALOMA: &str = "xlstm-data prepare paloma --out data/paloma";
const PERPLEXITY: &str = "xlstm-eval perplexity RUN --manifest data/slimpajama/validation";

/// All of them, in the paper's order.
pub(super) const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        place: "Figure 2, left",
        what: "nearest-neighbor search (mean squared error)",
        recipes: &["figure2-nearest/"],
        kind: "squared-error",
        commands: &["xlstm-train sweep nearest-neighbor --out runs/nearest-neighbor"],
        without: "values are in the figure only; heads, batch and the rest of the optimizer are not printed",
        sweeps: &["nearest-neighbor", "nearest-neighbor-small", "nearest-neighbor-two-rates"],
        twin: None,
    },
    Experiment {
        place: "Figure 2, right",
        what: "rare tokens of WikiText-103 by frequency (perplexity)",
        recipes: &["figure2-rare"],
        kind: "perplexity",
        commands: &[
            "xlstm-data prepare local WIKITEXT/train --split train --out data/wikitext-103",
            "xlstm-data prepare local WIKITEXT/validation --split validation --out data/wikitext-103",
            "xlstm-data prepare local WIKITEXT/test --split test --out data/wikitext-103",
            "xlstm-data count data/wikitext-103/train --out data/wikitext-103/token-counts.json",
            "xlstm-eval perplexity RUN --manifest data/wikitext-103/test --counts data/wikitext-103/token-counts.json",
        ],
        without: "articles put together from WikiText's lines: give them as documents; values are in the figure only, and its \
                  partitions of frequency are in no text: ours are decades",
        sweeps: &[],
        twin: None,
    },
    Experiment {
        place: "Figures 4 and 12",
        what: "formal languages (scaled accuracy)",
        recipes: &["tasks-formal"],
        kind: "accuracy",
        commands: &["xlstm-train sweep formal-languages --out runs/formal-languages"],
        without: "architectures without a variant below; width and heads are not printed in the paper",
        sweeps: &[
            "formal-languages",
            "formal-languages-small",
            "parity",
            "parity-half-small",
            "parity-small",
            "cycle-navigation",
            "even-pairs",
            "modular-arithmetic",
            "state-tracking-one-rate",
        ],
        twin: None,
    },
    Experiment {
        place: "Figures 5, 14, 15, 16",
        what: "multi-query associative recall (accuracy by width)",
        recipes: &["tasks-mqar"],
        kind: "accuracy",
        commands: &[
            "xlstm-train sweep mqar-1 --out runs/mqar-1",
            "xlstm-train sweep mqar-2 --out runs/mqar-2",
            "xlstm-train sweep mqar-3 --out runs/mqar-3",
        ],
        without: "architectures without a variant below; values are in the figures only",
        sweeps: &["mqar-1", "mqar-2", "mqar-3", "mqar-small"],
        twin: None,
    },
    Experiment {
        place: "Tables 5 and 6",
        what: "Long Range Arena (accuracy)",
        recipes: &["tasks-listops"],
        kind: "accuracy",
        commands: &["xlstm-train sweep listops --out runs/listops"],
        without: "Retrieval, Pathfinder, G-Image and RGB-Image: their published files are not read yet",
        sweeps: &["listops"],
        twin: None,
    },
    Experiment {
        place: "Table 1",
        what: "350M models on 15B tokens of SlimPajama (validation perplexity)",
        recipes: &["table1-15b"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA_15B, PERPLEXITY],
        without: "",
        sweeps: &[],
        twin: Some(Twin {
            recipe: "table1-small",
            variants: &[],
            shared: &[],
            differs: "about 25M parameters beside the vocabulary, steps of 65,536 tokens, 62 million tokens of other text \
                      (docs/results/table1-small) in place of 15 billion of SlimPajama, learning rate 1.5e-3 for all",
        }),
    },
    Experiment {
        place: "Table 2, top",
        what: "from LSTM to xLSTM (validation perplexity)",
        recipes: &["table2-lstm-to-xlstm"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA_15B, PERPLEXITY],
        without: "",
        sweeps: &[],
        twin: Some(Twin {
            recipe: "table2-small",
            variants: &["lstm", "lstm-residual", "lstm-up-projection", "0to1"],
            shared: &[("table1-small/7to1", "7to1")],
            differs: TABLE2_DIFFERS,
        }),
    },
    Experiment {
        place: "Table 2, bottom",
        what: "gating of xLSTM[1:0] (validation perplexity)",
        recipes: &["table2-gating"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA_15B, PERPLEXITY],
        without: "",
        sweeps: &[],
        twin: Some(Twin {
            recipe: "table2-small",
            variants: &[
                "no-gates-infinity",
                "no-gates",
                "forget-gate",
                "input-gate",
                "forget-gate-bias",
                "forget-and-input-gate-bias",
                "forget-gate-and-input-gate-bias",
            ],
            shared: &[("table1-small/1to0", "forget-and-input-gate")],
            differs: TABLE2_DIFFERS,
        }),
    },
    Experiment {
        place: "Figure 6 and Table 7",
        what: "scaling on 15B tokens, 125M to 2.7B (validation perplexity)",
        recipes: &["figure6-scaling-15b"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA_15B, PERPLEXITY],
        without: "the figure's values are not printed",
        sweeps: &[],
        twin: Some(Twin {
            recipe: "figure6-small",
            variants: &[],
            shared: &[
                ("table1-small/1to0", "25m-1to0"),
                ("table1-small/7to1", "25m-7to1"),
                ("table1-small/llama", "25m-llama"),
                ("table1-small/mamba", "25m-mamba"),
            ],
            differs: "5M to 86M parameters beside the vocabulary, steps of 65,536 tokens, 62 million tokens of the text of \
                      `docs/results/table1-small` in place of 15 billion of SlimPajama, learning rate 1.5e-3 at every size",
        }),
    },
    Experiment {
        place: "Table 8",
        what: "variants of the mLSTM block (validation perplexity)",
        recipes: &["table8-matrix-memory"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA_15B, PERPLEXITY],
        without: "",
        sweeps: &[],
        twin: Some(Twin {
            recipe: "table2-small",
            variants: &["post-up-projection", "no-convolution"],
            shared: &[("table1-small/1to0", "convolution")],
            differs: TABLE2_DIFFERS,
        }),
    },
    Experiment {
        place: "Table 3, perplexity, and Figure 8",
        what: "four sizes on 300B tokens of SlimPajama (validation perplexity)",
        recipes: &["table3-300b"],
        kind: "perplexity",
        commands: &[SLIMPAJAMA, PERPLEXITY],
        without: "",
        sweeps: &[],
        twin: None,
    },
    Experiment {
        place: "Table 3, downstream",
        what: "LAMBADA, HellaSwag, PIQA, ARC-E, ARC-C, WinoGrande, zero-shot",
        recipes: &["table3-300b"],
        kind: "tasks",
        commands: &["xlstm-eval serve RUN", "docs/guides/zero-shot.md has the command of each task"],
        without: "",
        sweeps: &[],
        twin: None,
    },
    Experiment {
        place: "Tables 4, 9 and 10",
        what: "PALOMA, 16 sources and 571 domains (perplexity)",
        recipes: &["table3-300b"],
        kind: "paloma",
        commands: &[PALOMA, "xlstm-eval paloma RUN --manifest data/paloma/validation"],
        without: "The Pile and ICE, which are not in the public release (nor in the paper)",
        sweeps: &[],
        twin: None,
    },
    Experiment {
        place: "Figure 7",
        what: "length extrapolation to 16,384 tokens, 1.3B (xLSTM[7:1] 8.92, xLSTM[1:0] 9.01 at 16,384)",
        recipes: &["table3-300b/1300m"],
        kind: "extrapolation",
        commands: &[SLIMPAJAMA, "xlstm-eval extrapolate RUN --manifest data/slimpajama/validation"],
        without: "the other lengths are in the figure only",
        sweeps: &[],
        twin: None,
    },
    Experiment {
        place: "Figure 9",
        what: "time and throughput of generation, 1.3B",
        recipes: &["table3-300b/1300m"],
        kind: "throughput",
        commands: &["xlstm-eval throughput RUN"],
        without: "values are in the figure only",
        sweeps: &[],
        twin: None,
    },
];

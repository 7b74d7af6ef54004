"""The official package as a peer: its model at given sizes, the paper's optimizer, a kernel in its mLSTM cells."""

CONTEXT = 2048
VOCABULARY = 50304


def build(sizes):
    """The package's language model; `sizes` are embedding_dim, num_blocks and slstm_at."""
    import dacite
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig

    config = {"vocab_size": VOCABULARY, "context_length": CONTEXT, "add_post_blocks_norm": True, **sizes}
    config["mlstm_block"] = {"mlstm": {"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4}}
    if sizes["slstm_at"]:
        slstm = {"backend": "vanilla", "num_heads": 4, "conv1d_kernel_size": 4}
        config["slstm_block"] = {"slstm": slstm, "feedforward": {"proj_factor": 1.3, "act_fn": "gelu"}}
    model = xLSTMLMModel(dacite.from_dict(xLSTMLMModelConfig, config))
    model.reset_parameters()
    return model


def optimizer(model, fused):
    """AdamW on the package's own groups, as the paper sets it up."""
    import torch

    decay, rest = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=2e-5, betas=(0.9, 0.95), eps=1e-5, fused=fused)


def use_kernel(model, kernel, **options):
    """Puts a kernel of mlstm_kernels into the mLSTM cells, which the released model does not offer."""

    def backend(queries, keys, values, igate_preact, fgate_preact, lower_triangular_matrix):
        tensors = [part.contiguous() for part in (queries, keys, values)]
        gates = [part.squeeze(-1).contiguous() for part in (igate_preact, fgate_preact)]
        hidden = kernel(*tensors, *gates, **options)
        return hidden[0] if isinstance(hidden, tuple) else hidden

    for block in model.xlstm_block_stack.blocks:
        cell = getattr(block.xlstm, "mlstm_cell", None)
        if cell is not None:
            cell.backend_fn = backend

"""DataInf as an influence model: its formula, and what all settings mean."""

from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.inverse.methods import DATAINF


class DataInfInfluence(BlockwiseInfluence):
    r"""Influence functions with DataInf's inverse of the Gauss-Newton matrix.

    The influence of training sample k on test sample t is, with one term per block of parameters,

        Σ_l  v_t[l]ᵀ  (1/n) Σ_i (g_i[l] g_i[l]ᵀ + λ_l I)⁻¹  g_k[l]

    where g_i and v_t are gradients of single samples' losses and n is the number of samples that
    `fit` saw. Positive = helpful: more weight on k lowers the loss of t. The unit is that of
    loss² · parameter⁻² / λ; scores are comparable within one fitted model.
    Source: Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024, with pyDVL's sign (theirs is the opposite).

    With curvature="gauss-newton" the g_i of the inverse are others than the gradients at the given
    labels: those at labels that the model itself would give, whose mean product is the true
    Gauss-Newton matrix of a cross entropy, (1/n) Σ_i Σ_k p_ik g_ik g_ikᵀ with p_ik the probability
    of label k. Automatic λ follows from them.
    Source: Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation", NeurIPS
    2019.

    Batches are (x, y) pairs of tensors, or mappings of tensors that carry their labels. A mapping
    is passed as x with y=None: `influences(test_batch, None, train_batch, None)`.

    Args:
        model: in evaluation mode; only parameters that require gradients take part. It is never
            changed.
        loss: `loss(outputs, y)` as in pyDVL, seen by each sample as a batch of one, or an
            `Objective` such as `SequenceClassification()`.
        regularization: λ > 0 for all blocks, a mapping of block name to λ (blocks left out are
            chosen automatically), or "auto": 0.1 times the block's mean squared gradient entry.
        block_structure: "module" (a block for each module that directly owns trainable
            parameters), a pyDVL `BlockMode` or its value, or a mapping of block name to parameter
            names, which may leave parameters out.
        gradients: "auto" (one batched pass; one pass per sample for what that cannot explain),
            "capture" (the latter is an error) or "functional" (`torch.func`).
        rows: what happens to the training gradients after `fit`: "memory" keeps them, "recompute"
            computes them again whenever they are needed, "auto" keeps them while they take less
            than a quarter of the memory that is free; "compressed" keeps of each block `rank`
            numbers: coordinates in the directions in which the rows of some training samples have
            most of their energy. What gradients have outside of these is dropped, of test samples
            too; λ and DataInf's weights are those of whole rows.
        batch_size: the largest number of samples in one gradient computation; None = as given.
        max_tokens: the largest number of tokens, padding included, in one gradient computation:
            the samples of each batch are taken by length and without common padding at the right,
            and their rows put back in order. For mappings with an `attention_mask`; None = batches
            are computed as they are. Large batches (of the loader) serve it best.
        progress: whether passes over the training data show a progress bar.
        damping_scale: what λ that are chosen automatically are multiplied by; None = 1.
        curvature: "empirical", the gradients at the given labels, or "gauss-newton", for losses
            that are torch's cross entropy of outputs (B, K), `SequenceClassification`,
            `TokenClassification` or `CausalLM`. Runs take the first.
        labels: of the Gauss-Newton matrix: "all" takes K rows a sample, √(K p_ik) g_ik, where it
            has one label; "drawn" takes one row, at labels drawn from p; "auto" all where a sample
            has one label of 16 or fewer, and drawn ones otherwise.
        label_seed: another number makes other draws; the same sample gets the same ones.
        test_objective: what is asked of test samples in place of their loss, such as `Margin()`;
            training samples keep the loss. Positive = more weight on k lowers it for t, so what is
            to be large, as a margin is, comes with a minus. None = the loss.
        rank: numbers that compressed rows keep of a block; blocks of no more parameters are kept
            whole. "auto" = of each block as few as hold 95% of the energy of the rows that its
            directions are learned from, 256 at most. None = 256.
        basis_sample: training samples that the directions are learned from; None = 2 · rank, or 512
            with "auto".
        basis_seed: another number chooses others.
        sides: the share of the outputs, and of the inputs, of each linear layer and convolution
            without groups that are kept before directions are learned, such as 0.25, so that whole
            gradients of wide layers need not be made of every sample. Layers of which fewer numbers
            than the rank would be left do without. None = all.
        preconditioner: the state of the Adam that trained the model, whose coordinates all
            gradients are taken in, of training and test samples: each is multiplied by
            (√v̂ + ε)^(-1/2), so that products are divided by √v̂ + ε as Adam's steps are. λ follows
            from these; factors and gradients that are returned are in them. None = plain gradients.

    Raises:
        BlockError: if the block structure does not fit the model.
        DampingError: if the regularization is not positive or names no block, or damping_scale is
            given where every block has a λ of its own.
        ModelError: if the model is of a kind whose layers cannot be seen, or there is no such
            curvature.
        ObjectiveError: if the loss is neither a callable nor an objective, or there is no such
            choice of labels.
        SourceError: if there is no such choice of `rows`, a number of compressed rows is out of
            range, or rows are to be compressed with the curvature of others.
        OptimizerError: if a parameter in blocks has no state in the preconditioner.
        BatchError: if batch_size or max_tokens is not a positive integer.
    """

    inverse = DATAINF

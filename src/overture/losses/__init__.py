"""Losses of the tokenizer: pixel, perceptual, adversarial; and the prior's cross-entropy.

Terms carry the same names everywhere, in metrics too: ``l1``, ``l2``, ``perceptual``, ``adversarial``,
``discriminator``, ``lecam``, ``r1``. A dictionary of terms holds them unweighted, and their weighted sum as ``total``.
"""

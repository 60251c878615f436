"""Merging of experts in weight space: pure functions of trees with a leading source axis.

`weights` makes the weight of each source and the weighted sum; `arithmetic` adds task vectors
(task arithmetic, TIES, DARE); `fisher` weights every entry by its diagonal Fisher; `search` finds
coefficients on held-out rows. A delta is any pytree of arrays.
"""

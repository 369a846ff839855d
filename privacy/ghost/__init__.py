"""Clipped sums of per-patient gradients without a gradient of each patient where that would be dear.

One forward and one backward pass. Each layer's input and the gradient of its output are caught (`passes`); from them
comes the norm of each patient's gradient (`matrices`), and, once all norms are known, the clipped sum (book-keeping).
There is no second backward pass. Which layers are known, and how: `layers`.

Sources: Goodfellow (2015), norms of linear layers; Rochette, Manoel, Tramel (2019), convolutions; Li, Tramèr, Liang,
Hashimoto (2022), ghost clipping; Bu, Mao, Xu (2022), the choice for each layer; Bu, Wang, Zha, Karypis (2023),
book-keeping.
"""

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading the layer
#
# Figure 4 of the paper, line by line in code. At the end you have written the attention layer of BoTNet in
# about twenty lines of PyTorch, and checked each of them against `botnet.MHSA2d`. Everything runs in
# seconds on a CPU.
#
# The figure in words: a feature map goes through three 1x1 convolutions, which give each cell a query, a
# key and a value. The query of a cell is compared with the keys of all cells (*content*) and with encodings
# of the offsets to all cells (*position*). The sum of both, through a softmax, is how much the cell attends
# to every other. The output is the mean of all values with these weights.

# %%
import torch

from botnet import MHSA2d

_ = torch.manual_seed(0)

# %% [markdown]
# ## A map, and the layer that we want to understand
#
# A map of 3 x 4 cells with 8 channels, and two heads of width d = 4. Real layers have 512 channels and four
# heads. `qkv_std` is raised here, so that the attention of an untrained layer is visibly uneven; the
# paper's 0.01 gives nearly even weights at the start of training.

# %%
channels, heads, height, width = 8, 2, 3, 4
d = channels // heads
x = torch.randn(1, channels, height, width)

layer = MHSA2d(channels, heads, feat_size=(height, width), qkv_std=0.5)
for name, parameter in layer.named_parameters():
    print(f"{name:22} {tuple(parameter.shape)}")

# %% [markdown]
# Three parameters. `qkv.weight` holds the three 1x1 convolutions of the figure, one above the other: 3 x 8
# outputs. The other two are the tables R_h and R_w: one vector of width d for every offset between two
# rows, from -2 to 2 in a map of three rows, and for every offset between two columns, from -3 to 3.
#
# ## Queries, keys, values
#
# A 1x1 convolution is a matrix product at every cell. Flattened, the map is a list of N = 3 * 4 = 12 cells.

# %%
cells = x[0].flatten(1).T  # (N, channels)
weight = layer.qkv.weight[:, :, 0, 0]  # (3 * channels, channels)
q, k, v = (cells @ weight.T).chunk(3, dim=1)  # (N, channels) each
q, k, v = (t.reshape(-1, heads, d).transpose(0, 1) for t in (q, k, v))  # (heads, N, d)
print("q, k, v:", tuple(q.shape))

# %% [markdown]
# The channels are cut into heads here: channels 0 to 3 belong to the first head, 4 to 7 to the second.
#
# ## The content term
#
# Each query with each key, scaled by 1 / sqrt(d). Without the scale the logits would grow with the width of
# the heads, and the softmax would become a maximum.

# %%
q = q * d**-0.5
content = q @ k.transpose(1, 2)  # (heads, N, N)
print("content logits:", tuple(content.shape))

# %% [markdown]
# ## The position term
#
# The content term does not know where a cell is: shuffle the cells, and every weight goes along. The paper
# adds, for a query at (y, x) and a key at (r, c), the product of the query with R_h[r - y] + R_w[c - x].
# The offset counts from the query to the key. Tables have no negative indices, so the entry of an offset o
# is o + L - 1 for a map of side L.

# %%
rows, columns = layer.pos_embed.height_rel, layer.pos_embed.width_rel  # (2H - 1, d), (2W - 1, d)
position = torch.zeros_like(content)
for y in range(height):
    for x_ in range(width):
        for r in range(height):
            for c in range(width):
                encoding = rows[r - y + height - 1] + columns[c - x_ + width - 1]  # (d,)
                query, key = y * width + x_, r * width + c
                position[:, query, key] = q[:, query] @ encoding
print("position logits:", tuple(position.shape))

# %% [markdown]
# Two things are easy to get wrong here, and checkpoints tell you only by a lower accuracy:
#
# - **The scale.** q is scaled before both products, not only before the content term. timm's layer scales
#   the position term only with `scale_pos_embed=True`.
# - **The sign.** Some codebases index the table by query minus key. Their tables are ours, flipped.
#
# ## Softmax, values, heads
#
# The figure ends here: there is no output projection, as there would be in a Transformer. The 1x1
# convolution that follows in the bottleneck block does that work.

# %%
weights = (content + position).softmax(dim=-1)  # (heads, N, N), each row sums to 1
out = weights @ v  # (heads, N, d)
out = out.transpose(0, 1).reshape(height, width, channels).permute(2, 0, 1)[None]  # (1, channels, H, W)

print("the layer's output:      ", torch.allclose(out, layer(x), atol=1e-5))
all_cells = torch.arange(height * width)
print(
    "the layer's weights:     ", torch.allclose(weights, layer.attention_weights(x, all_cells)[0], atol=1e-5)
)

# %% [markdown]
# That is the whole layer. `MHSA2d` computes the same, only never the N x N numbers of the position term,
# and on larger maps not those of the softmax at once either ([The attention layer](../attention.md)).
#
# ## What one cell attends to
#
# One row of `weights` is a picture: how much one cell attends to every other. The middle cell of the second
# row, with content alone, position alone, and both. Brighter is more; each panel has its own scale.

# %%
from matplotlib import pyplot as plt

cell = 1 * width + 1
terms = {"content": content, "position": position, "both": content + position}
figure, panels = plt.subplots(heads, 3, figsize=(7, 3.6), layout="constrained")
for head in range(heads):
    for panel, (name, logits) in zip(panels[head], terms.items(), strict=True):
        panel.imshow(logits[head, cell].softmax(-1).detach().reshape(height, width), cmap="viridis", vmin=0)
        panel.add_patch(plt.Rectangle((0.5, 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
        panel.set(title=f"head {head}: {name}", xticks=[], yticks=[])

# %% [markdown]
# The ablations of Table 4 train networks with one of the terms alone. The layer has them as arguments:

# %%
content_only = MHSA2d(channels, heads, position=None)
content_only.qkv.load_state_dict(layer.qkv.state_dict())
position_only = MHSA2d(channels, heads, content=False, feat_size=(height, width))
position_only.load_state_dict(layer.state_dict())

for name, logits, other in (("content", content, content_only), ("position", position, position_only)):
    expected = logits.softmax(-1)
    print(f"{name} alone:", torch.allclose(expected, other.attention_weights(x, all_cells)[0], atol=1e-5))

# %% [markdown]
# ## Write a table by hand
#
# The position term is a product with the query. If all queries are the same vector u, the table alone
# decides. With R_w[-1] = 10 u and zeros elsewhere, every cell looks at its left neighbour's column:

# %%
looks_left = MHSA2d(channels, heads, content=False, feat_size=(height, width))
u = torch.full((d,), d**-0.5)
with torch.no_grad():
    looks_left.qkv.weight.zero_()
    looks_left.qkv.weight[:channels, 0, 0, 0] = d**-0.5  # each query is u where channel 0 is 1
    looks_left.pos_embed.height_rel.zero_()
    looks_left.pos_embed.width_rel.zero_()
    looks_left.pos_embed.width_rel[-1 + width - 1] = 20 * u
ones = torch.ones(1, channels, height, width)
seen = looks_left.attention_weights(ones, torch.tensor([1 * width + 2]))[0, 0].reshape(height, width)
for row in seen.tolist():
    print("  ".join(f"{value:.2f}" for value in row))

# %% [markdown]
# The query is at row 1, column 2. It attends to column 1, evenly over the rows: R_h is zero, so no row is
# preferred.
#
# ## The pool of a strided layer
#
# The first block of c5 halves the map. Its 3x3 convolution has stride 2; attention has no stride, so the
# paper follows it by a 2x2 average pool. On odd sides the last window has fewer cells, and the mean is over
# these.

# %%
strided = MHSA2d(channels, heads, stride=2, feat_size=(height, width))
strided.load_state_dict(layer.state_dict())
pool = torch.nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
print(tuple(strided(x).shape), torch.allclose(strided(x), pool(out), atol=1e-5))

# %% [markdown]
# ## Maps of other sizes
#
# A smaller map has fewer offsets, and the tables have them all: it uses their centre. A larger one uses the
# tables interpolated. No call fails because of the size, and none changes the parameters.

# %%
small = torch.randn(1, channels, 2, 3)
cut = MHSA2d(channels, heads, feat_size=(2, 3))
with torch.no_grad():
    cut.qkv.weight.copy_(layer.qkv.weight)
    cut.pos_embed.height_rel.copy_(rows[1:-1])  # offsets -1, 0, 1 of -2 ... 2
    cut.pos_embed.width_rel.copy_(columns[1:-1])  # offsets -2 ... 2 of -3 ... 3
print("a smaller map:", torch.allclose(layer(small), cut(small), atol=1e-5))
print("a larger map: ", tuple(layer(torch.randn(1, channels, 10, 7)).shape))

# %% [markdown]
# ## Exercises
#
# 1. Compute `position` without loops: two products, one per axis, and a broadcast sum. (The layer never has
#    more than N * (H + W) position logits per head. Why does that suffice?)
# 2. Permute the cells of `x`. Which of `content_only` and `layer` gives the permuted output?
# 3. Give timm's layer the same weights: `timm.layers.BottleneckAttn(8, feat_size=(3, 4), num_heads=2,
#    scale_pos_embed=True)` has parameters of the same names. Does it agree? Does it without
#    `scale_pos_embed`?
#
# The answer to 2, in code:

# %%
order = torch.randperm(height * width)


def shuffled(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(2)[:, :, order].reshape(feature_map.shape)


print("content only:", torch.allclose(content_only(shuffled(x)), shuffled(content_only(x)), atol=1e-5))
print("the layer:   ", torch.allclose(layer(shuffled(x)), shuffled(layer(x)), atol=1e-5))

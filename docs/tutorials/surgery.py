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
# # Surgery on any ResNet
#
# A BoTNet is a ResNet in which attention replaces some 3x3 convolutions (Table 1 of the paper). So you do
# not build one: you take a ResNet, of timm or torchvision, and operate. This page shows how, what stays,
# and how the weights of the ResNet come along. It needs no download; where you would load ImageNet weights,
# it says so.

# %%
import tempfile
from pathlib import Path

import timm
import torch

import botnet
from botnet.models import fresh_parameters, load_resnet, save_weights

_ = torch.manual_seed(0)

# %% [markdown]
# ## Before and after
#
# `resnet50d` is one of timm's ResNets. With `pretrained=True` it comes with ImageNet weights.

# %%
net = timm.create_model("resnet50d", num_classes=10)
before = sum(p.numel() for p in net.parameters())
print("c5 block 1 before:", net.layer4[1].conv2)

net = botnet.bottleneck_transformer(net)
after = sum(p.numel() for p in net.parameters())
print("c5 block 1 after: ", type(net.layer4[1].conv2).__name__)
print(f"{before / 1e6:.1f} M parameters before, {after / 1e6:.1f} M after")

# %% [markdown]
# The three 3x3 of the last stage, c5, are attention now, and nothing else has changed: the network was
# changed in place, and every module that was not replaced is the same object. A 3x3 with 512 channels has 9
# * 512^2 weights, the layer 3 * 512^2 and its small tables, so the network has become smaller.
#
# These are the parameters that are new, and random until you train them:

# %%
for name in fresh_parameters(net):
    print(name)

# %% [markdown]
# ## Any image size
#
# The position tables were made for the image size of timm's configuration of the network; `img_size=`
# chooses another. Any size works in any call: smaller maps use the centre of the tables, larger ones
# interpolate them.

# %%
print("tables of c5 block 1 for a map of", net.layer4[1].conv2.feat_size)
net.eval()
with torch.no_grad():
    for size in ((224, 224), (160, 352), (97, 131)):
        print(size, "->", tuple(net(torch.randn(1, 3, *size)).shape))

# %% [markdown]
# ## Where to operate
#
# `stages` and `blocks` choose the blocks, `heads`, `position` and `content` the layer. `s1=True` removes
# the stride of c5, so that attention sees twice the resolution (BoT-S1, Section 4.7.1). Blocks can also be
# inserted instead of replaced (Table 7).

# %%
variants = {
    "c5, as in Table 1": lambda r: botnet.bottleneck_transformer(r),
    "last block of c4 and c5": lambda r: botnet.bottleneck_transformer(r, stages=["c4", "c5"], blocks=[-1]),
    "c5 without stride (S1)": lambda r: botnet.bottleneck_transformer(r, s1=True),
    "one BoT block inserted in c4": lambda r: botnet.insert_bot(r),
    "one Non-Local block inserted in c4": lambda r: botnet.insert_non_local(r),
}
image = torch.randn(1, 3, 128, 128)
for name, operate in variants.items():
    changed = operate(timm.create_model("resnet26")).eval()
    layers = [
        path for path, module in changed.named_modules() if type(module).__name__ in ("MHSA2d", "NonLocal2d")
    ]
    with torch.no_grad():
        side = changed.forward_features(image).shape[-1]
    print(f"{name}: c5 has {side} x {side} cells\n    {', '.join(layers)}")

# %% [markdown]
# ## The weights of the ResNet
#
# Operate on a trained ResNet, and its weights stay. Or operate first and load the ResNet's checkpoint
# afterwards: everything fits but what was replaced, as in Section 4.1 of the paper. `load_resnet` takes the
# tag of timm's weights (`"resnet50d.a1_in1k"`, downloaded), torchvision's weights, or a file. Here is the
# way by a file:

# %%
resnet = timm.create_model("resnet26", num_classes=10)  # imagine it trained
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "resnet26.safetensors"
    save_weights(resnet, file)
    net = botnet.bottleneck_transformer(timm.create_model("resnet26", num_classes=10))
    random = load_resnet(net, file)

theirs, ours = resnet.state_dict(), net.state_dict()
kept = [name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])]
print(f"{len(kept)} of {len(ours)} tensors are the ResNet's; random are:")
print("\n".join(random))

# %% [markdown]
# Weights of another network are an error, never a partial load. So is a network that cannot be converted;
# it is left unchanged:

# %%
try:
    botnet.bottleneck_transformer(timm.create_model("resnet18"))
except ValueError as error:
    print(error)

# %% [markdown]
# ## Train it
#
# The result is an ordinary `nn.Module`; train it as you train the ResNet. Only the position tables want no
# weight decay. As a sign of life, ten steps on one batch of scikit-learn's handwritten digits:

# %%
from sklearn.datasets import load_digits

digits = load_digits()
images = torch.tensor(digits.images[:16], dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
images = torch.nn.functional.interpolate(images, size=(64, 64), mode="bilinear")
labels = torch.tensor(digits.target[:16])

undecayed = {name for name in fresh_parameters(net) if "pos_embed" in name}
groups = [
    {"params": [p for n, p in net.named_parameters() if n not in undecayed], "weight_decay": 1e-4},
    {"params": [p for n, p in net.named_parameters() if n in undecayed], "weight_decay": 0.0},
]
optimiser = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
net.train()
losses = []
for _ in range(10):
    loss = torch.nn.functional.cross_entropy(net(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
print("the loss falls:", losses[-1] < losses[0] / 2)

# %% [markdown]
# ## A registered network
#
# The networks of the paper are registered with timm, so that its tools and this project's commands build
# them by name. Your own becomes one by a function of that name:

# %%
from timm.models import register_model


@register_model
def my_botnet26d(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
    """A ResNet-26-D with attention in c4 and c5."""
    return botnet.bottleneck_transformer(
        timm.create_model("resnet26d", pretrained, **kwargs), stages=["c4", "c5"]
    )


net = timm.create_model("my_botnet26d", num_classes=3)
print(
    timm.list_models("my_botnet*"),
    sum(type(m).__name__ == "MHSA2d" for m in net.modules()),
    "attention layers",
)

# %% [markdown]
# [Networks](../networks.md) has the paper's own, and the reference has every argument:
# [botnet.models](../api/models.md).

"""Training of a small `AutoencoderKL`: reconstruction in RGB, a chroma term, a faint KL."""

import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from dp2osr.data.crops import CropSource, to_tensor
from dp2osr.divergence import Divergence
from dp2osr.errors import UserError, made_of
from dp2osr.files import save_model
from dp2osr.training.checkpoints import restore_checkpoint, save_checkpoint
from dp2osr.training.folder import check_folder, check_length, clear_parts, keep_run_settings
from dp2osr.training.log import TrainingLog

SIDE = 128  # pixels of the crops that it is judged by, and whose statistics its latents are whitened by


def to_ycbcr(images):
    """(B, 3, H, W) RGB → BT.601 Y, Cb, Cr with the same scale (full range, no offset)."""
    weight = images.new_tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return torch.einsum("kc,bchw->bkhw", weight, images)


def reconstruction_loss(images, output, posterior, chroma_weight, kl_weight):
    """L1 in RGB + `chroma_weight` · L1 in (Cb, Cr) + `kl_weight` · mean KL.

    PSNR hardly sees a dull or shifted hue, which is low-contrast error over large areas; the chroma term does.
    """
    difference = to_ycbcr(output - images)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return F.l1_loss(output, images) + chroma_weight * difference[:, 1:].abs().mean() + kl_weight * kl


@torch.no_grad()
def linear_start(vae):
    """Initialise `vae` (two down-samplings, one norm group) as block means and their interpolation.

    From random weights a small `AutoencoderKL` spends its first thousand steps on finding colour again, since every
    normalisation takes the mean of an image away. Here the residual branches start at zero, RGB travels on the skip path
    in channels 0-2, and where the path meets a norm and a SiLU it is carried by the pair (x, -x), for
    silu(x) - silu(-x) = x, beside two large constants that keep the norm's divisor nearly the same for every image.
    """
    rgb = torch.arange(3)

    def pass_rgb(conv, taps):  # taps: (k, k), the filter that each of R, G, B goes through
        conv.weight[:3] = 0
        conv.weight[rgb, rgb] = taps
        conv.bias[:3] = 0

    def open_pair(conv, constant):  # 1 x 1: channels 0-2 become (x, -x), the last two the constants
        conv.weight[:6], conv.bias[:6] = 0, 0
        conv.weight[rgb, rgb], conv.weight[rgb + 3, rgb] = 1, -1
        conv.weight[-2:], conv.bias[-2], conv.bias[-1] = 0, constant, -constant

    def close_pair(conv, gain):
        conv.weight[:3] *= 0.1
        conv.weight[:3, :6], conv.bias[:3] = 0, 0
        conv.weight[rgb, rgb, 1, 1], conv.weight[rgb, rgb + 3, 1, 1] = gain, -gain

    for module in vae.modules():
        if hasattr(module, "conv_shortcut"):  # a ResnetBlock2D
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                pass_rgb(module.conv_shortcut, torch.ones(1, 1))
    centre, mean, smooth = torch.zeros(3, 3), torch.zeros(3, 3), torch.tensor([1.0, 2.0, 1.0])
    centre[1, 1], mean[:2, :2] = 1, 0.25
    encoder, decoder = vae.encoder, vae.decoder
    pass_rgb(encoder.conv_in, centre)
    for block in encoder.down_blocks[:-1]:
        pass_rgb(block.downsamplers[0].conv, mean)
    open_pair(encoder.down_blocks[-1].resnets[0].conv_shortcut, 4.0)
    close_pair(encoder.conv_out, 1.0)
    latent = encoder.conv_out.out_channels // 2
    encoder.conv_out.weight[latent:], encoder.conv_out.bias[latent:] = 0, -6.0
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.out_channels)[:, :, None, None])
        conv.bias.zero_()
    pass_rgb(decoder.conv_in, 0.75 * centre)
    for block in decoder.up_blocks[:-1]:
        pass_rgb(block.upsamplers[0].conv, torch.outer(smooth, smooth) / 16)
    open_pair(decoder.up_blocks[-1].resnets[0].conv_shortcut, 2.0)
    close_pair(decoder.conv_out, 0.8)


@torch.no_grad()
def evaluate_autoencoder(vae, crops):
    """Reconstruction of (B, 3, H, W) crops in [0, 1]: mean PSNR (dB, RGB) and mean CIEDE2000 after 8-bit rounding."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    psnr, delta_e = [], []
    for crop in crops.split(1):
        output = vae.decode(vae.encode(crop * 2 - 1).latent_dist.mode()).sample
        output = output.div(2).add(0.5).clamp(0, 1).mul(255).round().div(255)
        psnr.append(-10 * math.log10((output - crop).square().mean().item()))
        lab = [rgb2lab(image[0].permute(1, 2, 0).numpy()) for image in (crop, output)]
        delta_e.append(deltaE_ciede2000(*lab).mean())
    return {"psnr": sum(psnr) / len(psnr), "ciede2000": float(sum(delta_e) / len(delta_e))}


@torch.no_grad()
def whiten_latents(vae, crops):
    """Give the latents of `vae` zero mean, unit variance and no correlation between channels; reconstructions stay the same.

    The map is folded into the two 1 × 1 convolutions around the latents, so the scaling factor becomes 1. A diffusion model sees
    noise of one size in every channel: a channel of small variance drowns in it, and its errors hardly count in the loss.

    Args:
        vae: `AutoencoderKL` with `quant_conv` and `post_quant_conv`.
        crops: (B, 3, H, W) in [0, 1], the photographs whose statistics are taken.
    """
    latents = torch.cat([vae.encode(crop * 2 - 1).latent_dist.mode() for crop in crops.split(16)]).double()
    flat = latents.transpose(0, 1).flatten(1)
    mean, (variances, axes) = flat.mean(1), torch.linalg.eigh(torch.cov(flat))
    whiten = axes @ torch.diag(variances.rsqrt()) @ axes.T  # ZCA: of all whitenings the one nearest to the identity
    restore = torch.linalg.inv(whiten)
    into, back, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    into.bias[:channels] = (whiten @ (into.bias[:channels].double() - mean)).float()
    into.weight[:channels] = torch.einsum("ij,jkhw->ikhw", whiten, into.weight[:channels].double()).float()
    back.bias += torch.einsum("ijhw,j->i", back.weight.double(), mean).float()
    back.weight.copy_(torch.einsum("ijhw,jk->ikhw", back.weight.double(), restore))
    vae.register_to_config(scaling_factor=1.0)


def new_autoencoder(args):
    """A small `AutoencoderKL` by the flags of scripts/train_vae.py, at its linear start.

    Raises:
        UserError: numbers of which none can be made, or crops that it cannot halve as often as it must.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(args.seed)
    levels = len(args.block_out_channels)
    given = f"--block_out_channels {' '.join(map(str, args.block_out_channels))} --latent_channels {args.latent_channels}"
    for side in (args.resolution, SIDE):
        if side % 2 ** (levels - 1):
            of = "--resolution" if side == args.resolution else "of the held-out crops"
            raise UserError(
                f"{given}: {levels} levels halve a side {levels - 1} times, and the {side} pixels ({of}) are no multiple of that"
            )
    if min(args.block_out_channels) < 8 or args.latent_channels < 3 or args.block_out_channels[-1] in args.block_out_channels[-2:-1]:
        raise UserError(f"{given}: 8 channels at least a level, others in the last than before it, and 3 latent channels carry the colours")
    with made_of(given):
        vae = AutoencoderKL(
            block_out_channels=args.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            latent_channels=args.latent_channels,
            norm_num_groups=1,
            mid_block_add_attention=False,
            sample_size=SIDE,
        )
        linear_start(vae)
    return vae


def check_autoencoder_output(args):
    """Raise `UserError` where `args.output_dir` is no place for an autoencoder."""
    inputs = {"--train_dir": args.train_dir, "--val_dir": args.val_dir}
    check_folder(args.output_dir, inputs, ("vae", "train_log.jsonl", "checkpoint-*.pt"))
    check_length(args.output_dir, args.max_train_steps)


def train_autoencoder(vae, args):
    """Train `vae` on crops of `args.train_dir`, keep a resumable checkpoint, write the diffusers folder at the end."""
    torch.manual_seed(args.seed)
    output = Path(args.output_dir)
    source = CropSource(args.train_dir, args.resolution, args.seed, at_least=SIDE)
    held_out = CropSource(args.val_dir, SIDE, args.seed)
    keep_run_settings(output, vars(args), ("checkpointing_steps", "output_dir", "config"), steady=False)
    clear_parts(output)
    held_out = to_tensor([crop for _, crop in held_out.draw(0, 48)])
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def rate(step):
        warm_up = min(1.0, (step + 1) / args.lr_warmup_steps)
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / args.max_train_steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    parts = {"vae": vae, "optimizer": optimizer, "scheduler": scheduler}
    first = restore_checkpoint(output, parts)
    log, started, divergence = TrainingLog(output / "train_log.jsonl", first), time.time(), Divergence(output)
    bar = tqdm(range(first, args.max_train_steps), initial=first, total=args.max_train_steps, unit="step", mininterval=5)
    for step in bar:
        images = to_tensor([crop for _, crop in source.draw(step, args.train_batch_size)]) * 2 - 1
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(images, decoded, posterior, args.chroma_weight, args.kl_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        divergence.see(step + 1, math.isfinite(loss.item()))
        if (step + 1) % args.checkpointing_steps == 0 or step + 1 == args.max_train_steps:
            record = {"step": step + 1, "seconds": round(time.time() - started), "loss": loss.item(), **evaluate_autoencoder(vae, held_out)}
            bar.set_postfix(psnr=f"{record['psnr']:.2f}", dE=f"{record['ciede2000']:.2f}")
            log.write(record)
            save_checkpoint(output, step + 1, parts, keep=1)
    crops = to_tensor([crop for _, crop in source.draw(args.max_train_steps, 256, SIDE)])
    whiten_latents(vae, crops)
    save_model(vae.half(), output / "vae")
    return vae

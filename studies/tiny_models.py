"""Untrained tiny models of the two kinds, Stable Diffusion 2 and FLUX: diffusers' own classes, small."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import torch

from dp2osr.backbones.loading import load_part
from dp2osr.data.photographs import read_manifest
from dp2osr.errors import UserError, made_of
from dp2osr.files import replace_folder, save_model
from dp2osr.outputs import check_output

NEGATIVE_PROMPT = "dotted, noise, blur, lowres, smooth"


def make_tokenizer(corpus, folder, max_length=77, vocabulary=1024):
    """A byte-level BPE in CLIP's format (vocab.json, merges.txt), learnt on the prompts in `corpus`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(corpus, trainer)
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(merge) for merge in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=max_length, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_t5_tokenizer(corpus, folder, max_length=24, vocabulary=800):
    """A unigram tokenizer in T5's format, learnt on the prompts in `corpus`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5TokenizerFast

    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator(corpus, trainer)
    pieces = [tuple(piece) for piece in json.loads(unigram.to_str())["model"]["vocab"]]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def read_corpus(manifest):
    """Prompts of a manifest of photographs, for the tokenizers; `UserError` where it is none."""
    try:
        prompts = [row["prompt"] for row in read_manifest(manifest)]
        if not prompts:
            raise ValueError("it has no row")
        return prompts + [NEGATIVE_PROMPT] * 20
    except (OSError, KeyError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise UserError(f"--manifest {manifest}: not a readable CSV with a column 'prompt' ({reason})") from None


def make_clip(tokenizer, width):
    """A CLIP text encoder of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_new(make, args, sizes):
    """Call `make` (`make_tiny_sd2`, `make_tiny_flux`) for a folder that is new or empty; `sizes` are the flags that networks are made of.

    Raises:
        UserError: a folder with something in it, an autoencoder or a corpus that cannot be read, sizes of which no network can be made.
    """
    check_output(args.output_dir)
    output = Path(args.output_dir)
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output_dir {output}: is not empty; give a new folder, or remove this one")
    words = " ".join(
        f"--{name} {value if isinstance(value, int) else ' '.join(map(str, value))}" for name in sizes if (value := vars(args)[name])
    )
    with made_of(words):
        replace_folder(output, lambda folder: make(replace(args, output_dir=str(folder))))


def read_autoencoder(path):
    """An `AutoencoderKL` from its folder; `UserError` where it is none."""
    from diffusers import AutoencoderKL

    if not Path(path).is_dir():
        raise UserError(f"--vae {path}: no such folder; studies/train_vae.py writes one, vae/ in its --output_dir")
    return load_part(AutoencoderKL, path, None)


def make_tiny_sd2(args):
    """Write the whole pipeline folder (the given VAE, a fresh tokenizer, text encoder and UNet, SD2's noise schedule) and `controlnet/`."""
    from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(read_corpus(args.manifest), Path(args.output_dir) / "tokenizer")
    vae = read_autoencoder(args.vae)
    text_encoder = make_clip(tokenizer, args.text_width)
    plain = len(args.block_out_channels) - 1  # attention at the lowest resolution only: elsewhere it costs more than it gives
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=args.block_out_channels,
        down_block_types=(*["DownBlock2D"] * plain, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * plain),
        layers_per_block=1,
        norm_num_groups=1,  # with several groups each takes its mean, and with it colour, away
        attention_head_dim=4,
        cross_attention_dim=args.text_width,
        use_linear_projection=True,
    )
    # v-prediction, as SD2's 768-pixel model has it: with little training, a noise prediction leaves blotches of colour, since at
    # high noise levels it says next to nothing about the image, while v there is the image, which the LR almost gives away.
    # No signal is left in the last timestep and sampling starts there (Lin et al., "Common Diffusion Noise Schedules and Sample
    # Steps are Flawed"): else the model takes an image's mean colour from the noisy latents, where sampling has none.
    schedule = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, schedule, None, None, requires_safety_checker=False)
    save_model(pipeline, args.output_dir)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(args.conditioning_channels))
    linear_control_start(controlnet)
    save_model(controlnet, Path(args.output_dir) / "controlnet")


@torch.no_grad()
def linear_control_start(controlnet):
    """Initialise `controlnet` (new, of an untrained UNet) so that the LR's colours reach the UNet's last block from step 0.

    Zero convolutions protect a trained UNet from an untrained ControlNet. Here neither is trained, and the zeros only hide the
    LR: they get default weights. As in the autoencoder's linear start, RGB travels through the control embedding in the pairs
    (x, -x), for silu(x) - silu(-x) = x, is averaged over the blocks of pixels that a latent stands for, and leaves by the first
    residual in channels 0-2.
    """
    embedding, rgb = controlnet.controlnet_cond_embedding, torch.arange(3)
    for conv in [embedding.conv_out, *controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        conv.reset_parameters()
    centre, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    centre[1, 1], mean[1:, 1:] = 1, 0.25

    def pass_rgb(conv, taps, pair_in, signs):
        conv.weight[: 3 * len(signs)], conv.bias[: 3 * len(signs)] = 0, 0
        for offset, sign in zip((0, 3), signs, strict=False):
            conv.weight[rgb + offset, rgb] = sign * taps
            if pair_in:
                conv.weight[rgb + offset, rgb + 3] = -sign * taps

    pass_rgb(embedding.conv_in, centre, False, (1, -1))
    for conv in embedding.blocks:
        pass_rgb(conv, mean if conv.stride == (2, 2) else centre, True, (1, -1))
    pass_rgb(embedding.conv_out, centre, True, (1,))
    controlnet.conv_in.weight[:3], controlnet.conv_in.bias[:3] = 0, -0.5  # RGB in [0, 1], nothing of the noisy latents
    pass_rgb(controlnet.controlnet_down_blocks[0], torch.ones(1, 1), False, (1,))


def make_tiny_flux(args):
    """Write the pipeline folder (the given VAE, fresh tokenizers, encoders and transformer, FLUX.1-dev's schedule) and `controlnet/`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(args.seed)
    output, corpus = Path(args.output_dir), read_corpus(args.manifest)
    tokenizer, tokenizer_2 = make_tokenizer(corpus, output / "tokenizer"), make_t5_tokenizer(corpus, output / "tokenizer_2")
    vae = read_autoencoder(args.vae)
    vae.register_to_config(shift_factor=vae.config.shift_factor or 0.0)  # FLUX's pipelines read it
    text_encoder = make_clip(tokenizer, args.text_width)
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=args.text_width,
            d_kv=args.text_width // 4,
            d_ff=2 * args.text_width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    head = args.width // args.num_attention_heads
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=args.num_layers,
        num_single_layers=args.num_single_layers,
        attention_head_dim=head,
        num_attention_heads=args.num_attention_heads,
        joint_attention_dim=args.text_width,
        pooled_projection_dim=args.text_width,
        guidance_embeds=True,
        axes_dims_rope=rotary_axes(head),
    )
    # the published schedule: timesteps shifted by the number of tokens
    schedule = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    save_model(FluxPipeline(schedule, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer), output)
    controlnet = FluxControlNetModel.from_transformer(
        transformer,
        num_layers=args.num_double_layers,
        num_single_layers=0,
        attention_head_dim=head,
        num_attention_heads=args.num_attention_heads,
    )
    # as in `linear_control_start`: zeros protect a trained transformer, here they would only hide the LR
    for layer in (controlnet.controlnet_x_embedder, *controlnet.controlnet_blocks):
        layer.reset_parameters()
    save_model(controlnet, output / "controlnet")


def rotary_axes(head):
    """Shares of a head's width for the rotary code of (nothing, row, column): even numbers, about 1 : 3.5 : 3.5 as in FLUX.1."""
    side = head * 7 // 16 // 2 * 2
    return [head - 2 * side, side, side]

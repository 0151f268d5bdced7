"""An untrained tiny Stable Diffusion 2: diffusers' own classes, small."""

import json
from pathlib import Path

from dp2osr.data.photographs import read_manifest

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


def make_tiny_sd2(args):
    """Write the whole pipeline folder: the given VAE, a fresh tokenizer, text encoder and UNet, SD2-base's noise schedule."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(args.seed)
    corpus = [row["prompt"] for row in read_manifest(args.manifest)] + [NEGATIVE_PROMPT] * 20
    tokenizer = make_tokenizer(corpus, Path(args.output_dir) / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.vae)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.text_width,
            intermediate_size=4 * args.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    plain = len(args.block_out_channels) - 1  # attention at the lowest resolution only: elsewhere it costs more than it gives
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=args.block_out_channels,
        down_block_types=(*["DownBlock2D"] * plain, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * plain),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=args.text_width,
        use_linear_projection=True,
    )
    # v-prediction, as SD2's 768-pixel model has it: with little training, a noise prediction leaves blotches of colour, since at
    # high noise levels it says next to nothing about the image, while v there is the image, which the LR almost gives away.
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type="v_prediction"
    )
    pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, schedule, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(args.output_dir)

"""The tokenizer and processor of toy-llava: a byte-level BPE over the recipe's own sentences, in LLaVA-1.5's frame."""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from dpbench.toy.prompts import DESCRIBE, FORMATS, describe, random_exchange
from dpbench.toy.questions import caption
from dpbench.toy.scenes import SIDE, training_scene
from dpbench.toy.tower import MEAN, STD

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
VOCABULARY = 768
CORPUS_SCENES = 2000
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def corpus(seed: int) -> Iterator[str]:
    """Yield the sentences the vocabulary is learnt from."""
    rng = np.random.default_rng(seed)
    for _ in range(CORPUS_SCENES):
        scene = training_scene(rng)
        for form in FORMATS:
            exchange = random_exchange(scene, rng, form)
            yield f"USER: {exchange.prompt} ASSISTANT: {exchange.reply}"
        yield f"USER: {DESCRIBE} ASSISTANT: {caption(scene)}"
        yield f"USER: {describe(scene[0].place)} ASSISTANT: nothing"


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn the vocabulary; any other text still encodes, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(seed),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
    )


def make_processor(seed: int) -> LlavaProcessor:
    """Return the processor: CLIP preprocessing at 96x96, the tokenizer, and a chat template in LLaVA-1.5's form."""
    square = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=square, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=train_tokenizer(seed),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )

"""Data of every task with a plain Lightning trainer: split, batches, order, resume."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.training.tiny import TEXT, TinyTransformer, make_tiny
from utils.adapters.contract import CallContract
from utils.adapters.lightning_adapter import UniversalModelAdapter
from utils.adapters.masks import MaskConvention
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import LogitsSelector
from utils.errors import ConfigError, DataError, TokenIdError, TokenizerError
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.data_module import AdaptiveTokenizerDataModule, UniversalDataModule
from utils.tokenization.vision import VisionDataCollator
from utils.training.generation import generate

LINES = TEXT.splitlines()
TOKENIZER = FastBPETrainer.train_on_dataset([TEXT], 300)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-exactness holds for one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Gone(Exception):
    """Stands for a machine that goes away."""


def plain_trainer(**options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", num_sanity_val_steps=0, **{**quiet, **options})


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(300, 8), nn.Linear(8, classes)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.unsqueeze(-1).float()
        return self.head((self.token(input_ids) * weights).sum(1) / weights.sum(1))


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(300, 16), nn.Linear(16, 300)

    def forward(self, input_ids, decoder_input_ids):
        return self.head(self.token(decoder_input_ids) + self.token(input_ids[:, :1]))


class Seeing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 4 * 4, 3)

    def forward(self, pixel_values):
        return self.head(pixel_values.flatten(1))


CLASSIFICATION = CallContract(
    task="classification",
    mask_name="attention_mask",
    mask=MaskConvention(),
    logits=LogitsSelector(layout="BV"),
    vocab_size=300,
)


def adapted(task: str) -> AdaptedModel:
    if task == "lm":
        return make_tiny()
    model, contract = {
        "masked": lambda: (TinyTransformer(causal=False), CallContract(task="masked", vocab_size=300, max_length=16)),
        "seq2seq": lambda: (
            Answering(),
            CallContract(task="seq2seq", decoder_name="decoder_input_ids", vocab_size=300),
        ),
        "classification": lambda: (Classifier(2), CLASSIFICATION),
        "vision": lambda: (Seeing(), CallContract("pixel_values", task="vision", image_shape=(3, 4, 4))),
    }[task]()
    return AdaptedModel(model, {"vocab_size": 300}, contract=contract)


IMAGES = [(np.full((6, 5, 3), 40 * (n % 3), np.uint8), n % 3) for n in range(30)]
TASKS = {
    "lm": ({"data": LINES}, "input_ids"),
    "padded": ({"data": LINES, "task": "lm", "packed": False}, "input_ids"),
    "masked": ({"data": LINES}, "input_ids"),
    "seq2seq": ({"data": [(str(n), WORDS[n % 10]) for n in range(60)]}, "input_ids"),
    "classification": ({"data": [(line, "odd" if i % 2 else "even") for i, line in enumerate(LINES)]}, "input_ids"),
    "vision": ({"data": IMAGES, "collator": VisionDataCollator(size=4), "workers": 0}, "pixel_values"),
}


def module_of(name: str, **options) -> UniversalDataModule:
    given, _ = TASKS[name]
    return UniversalDataModule(
        **{"tokenizer": TOKENIZER, "task": name, "batch_size": 8, "max_length": 16, **given, **options}
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_with_a_plain_trainer(name, accumulation):
    """Ragged batches under accumulation too: they say what they weigh."""
    torch.manual_seed(0)
    module = module_of(name)
    lit = UniversalModelAdapter(adapted(module.task), learning_rate=0.02)
    before = plain_trainer().validate(lit, module, verbose=False)[0]["val_loss"]
    plain_trainer(max_epochs=4, accumulate_grad_batches=accumulation).fit(lit, module)
    after = plain_trainer().validate(lit, module, verbose=False)[0]["val_loss"]
    assert after < before
    batch = next(iter(module.train_dataloader()))
    assert TASKS[name][1] in batch and "labels" in batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["padded", "classification", "seq2seq"])
def test_validation_is_the_mean_over_all_labels(name):
    module = module_of(name)
    model = adapted(module.task).eval()
    found = plain_trainer().validate(UniversalModelAdapter(model), module, verbose=False)[0]["val_loss"]
    samples = module.validation_samples
    with torch.no_grad():
        losses = [
            float(model(b["input_ids"], b["attention_mask"], b["labels"]).loss)
            for b in (samples.__getitems__([i]) for i in range(len(samples)))
        ]
    assert len({int(n) for n in samples.loss_tokens}) > 1 or name == "classification"
    assert found == pytest.approx(np.average(losses, weights=samples.loss_tokens), rel=1e-5)


def test_documented_call_gives_full_blocks_of_both_parts():
    module = AdaptiveTokenizerDataModule(LINES, TOKENIZER)
    assert (module.batch_size, module.max_length) == (16, 512)
    small = AdaptiveTokenizerDataModule(dataset=LINES, tokenizer=TOKENIZER, batch_size=4, max_length=32)
    small.setup()
    shapes = {tuple(batch["input_ids"].shape) for batch in small.train_dataloader()}
    assert (4, 32) in shapes and small.train_samples.tokens + small.validation_samples.tokens == sum(
        len(TOKENIZER(line)["input_ids"]) + 1 for line in LINES
    )
    assert "144" not in small.summary() and "16 of 160 documents, drawn by seed 42" in small.summary()


@pytest.mark.parametrize("name", ["lm", "classification", "seq2seq"])
def test_copies_never_lie_on_both_sides(name):
    given = TASKS[name][0]["data"]
    module = module_of(name, data=[*given, *given[:20], *given[:20]], batch_size=1, max_length=64)
    texts = []
    for loader in (module.train_dataloader(), module.val_dataloader()):
        shown = [TOKENIZER.decode(b["input_ids"][0], skip_special_tokens=False) for b in loader]
        texts.append({part for text in shown for part in text.replace("<pad>", "").split("</s>") if part})
    if name == "lm":  # documents are cut by blocks: only whole lines can be compared
        texts = [{text for text in part if text in LINES} for part in texts]
    assert texts[0] and texts[1] and not texts[0] & texts[1]


def test_the_parts_may_come_apart():
    for data in ({"train": LINES[:50], "validation": LINES[50:60]}, {"train": LINES[:50], "dev": LINES[50:60]}):
        module = UniversalDataModule(data, TOKENIZER, max_length=16)
        assert module.validation_samples.tokens == sum(len(TOKENIZER(x)["input_ids"]) + 1 for x in LINES[50:60])
    apart = UniversalDataModule(LINES[:50], TOKENIZER, validation=LINES[50:60], max_length=16)
    assert apart.fingerprint == module.fingerprint


def test_the_validation_of_loaded_data_is_taken():
    class Loaded:
        documents, validation = tuple(LINES[:50]), tuple(LINES[50:60])

    module = UniversalDataModule(Loaded(), TOKENIZER, max_length=16)
    assert module.validation_samples.tokens == sum(len(TOKENIZER(x)["input_ids"]) + 1 for x in LINES[50:60])
    assert "comes with the data" in module.summary()


def test_columns_of_a_dataset_serve_every_task():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["b", "a"]),
            "target": datasets.Value("string"),
        }
    )
    rows = {"text": LINES, "label": [n % 2 for n in range(160)], "target": LINES[::-1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    pairs = UniversalDataModule(dataset, TOKENIZER, "seq2seq", max_length=64)
    assert len(pairs.train_samples) == 144
    classes = UniversalDataModule(dataset, TOKENIZER, "classification", max_length=64, batch_size=200)
    batch = next(iter(classes.train_dataloader()))
    names = {
        TOKENIZER.decode(ids[mask == 1]): classes.class_names[int(label)] for ids, mask, label in zip(*batch.values())
    }
    assert all(names[line] == ("b", "a")[LINES.index(line) % 2] for line in names) and len(names) == 144


class Watch(pl.Callback):
    """Keeps the batches of training; saves and stops after a step."""

    def __init__(self, path, stop, per_epoch):
        self.seen, self.path, self.stop, self.per_epoch = [], path, stop, per_epoch

    def on_train_batch_start(self, trainer, module, batch, index):
        self.seen.append((batch["input_ids"].tolist(), batch["labels"].tolist()))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == self.stop != self.per_epoch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer, module):
        if trainer.global_step == self.stop:
            self.save(trainer)

    def save(self, trainer):
        trainer.save_checkpoint(self.path)
        raise Gone


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lm", "masked", "padded"])
def test_a_plain_run_goes_on_with_the_next_batch(tmp_path, name):
    """Stopped inside and at the end of epochs: the batches after a resume are those that an uninterrupted run sees."""

    path = tmp_path / "last.ckpt"
    per_epoch = len(module_of(name).train_dataloader())
    steps = per_epoch + 4

    def run(stop=None, start=None):
        torch.manual_seed(0)
        watch = Watch(path, stop, per_epoch)
        module = module_of(name)
        lit = UniversalModelAdapter(adapted(module.task))
        trainer = plain_trainer(max_steps=steps, max_epochs=20, callbacks=[watch])
        with pytest.raises(Gone) if stop else contextlib.nullcontext():
            trainer.fit(lit, module, ckpt_path=start)
        return watch.seen

    whole = run()
    for stop in (1, per_epoch, per_epoch + 1):
        assert run(stop) + run(start=path) == whole


def test_a_checkpoint_of_other_data_does_not_move_the_order(caplog):
    module = module_of("lm")
    module.load_state_dict({"epoch": 1, "batch": 2, "fingerprint": "other"})
    assert "made with other data" in caplog.text
    assert module.train_dataloader().batch_sampler.start == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("padding", ["own", "end of text"])
@pytest.mark.parametrize("name", ["lm", "padded"])
def test_a_model_learns_to_stop(name, padding):
    """Documents are such as "3 three": after the word nothing follows, also where padding and end of text share an id."""
    documents = [f"{n} {WORDS[n]}" for n in np.random.default_rng(0).integers(0, 10, 2000)]
    tokenizer = FastBPETrainer.train_on_dataset(documents, 300)
    if padding == "end of text":
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    model = make_tiny(dropout=0.0, width=32)
    module = module_of(name, data={"train": documents, "validation": documents[:10]}, tokenizer=tokenizer)
    plain_trainer(max_steps=300).fit(UniversalModelAdapter(model, learning_rate=0.01), module)
    for number, word in enumerate(WORDS):
        said = generate(model, str(number), tokenizer=tokenizer, max_new_tokens=30, temperature=0)
        assert said == f"{number} {word}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 17}, "samples are up to 17 tokens long, the model takes at most 16. Pass max_length=16"),
        (
            {"tokenizer": FastBPETrainer.train_on_dataset([TEXT], 310)},
            "token id 30[0-9]; the model has 300 embedding rows",
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused_before_the_first_batch(options, message):
    with pytest.raises(TokenIdError, match=message):
        plain_trainer(max_steps=1).fit(UniversalModelAdapter(make_tiny()), module_of("lm", **options))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "speech"}, ConfigError, "Known: lm, masked, seq2seq"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"max_length": 1}, ConfigError, "max_length=1"),
        ({"tokenizer": None}, TokenizerError, "needs a tokenizer: pass tokenizer="),
        ({"data": {"test": LINES}}, DataError, "none named 'train'"),
        ({"data": []}, DataError, "no text in the 0 documents"),
        ({"task": "classification"}, DataError, "pairs .*example 0 is none"),
        ({"task": "classification", "labels": [1, 2]}, DataError, "160 texts and 2 labels"),
        ({"task": "classification", "data": [("same", 0), ("same", 1)]}, DataError, "all of one text"),
        (
            {"task": "classification", "data": {"train": [("a", "x"), ("b", "y")], "validation": [("c", "z")]}},
            DataError,
            "classes that training does not have: z",
        ),
        ({"task": "vision", "data": [np.zeros((4, 4))]}, DataError, "Image 0 has no label"),
        ({"task": "vision", "data": [np.zeros((4, 4))] * 3, "labels": [0, 1]}, DataError, "3 images and 2 labels"),
        ({"task": "vision", "data": []}, DataError, "no images"),
        ({"task": "classification", "data": []}, DataError, "no examples"),
        ({"task": "classification", "data": [("a", 0), ("b", None)]}, DataError, "Example 1 has no label"),
        ({"task": "classification", "data": [("a", "x"), ("b", float("nan"))]}, DataError, "Example 1 has no label"),
        ({"data": "notes.txt"}, DataError, "no name or path"),
        ({"validation": "notes.txt"}, DataError, "no name or path"),
        ({"data": {"a", "b"}}, DataError, "no list of documents"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        UniversalDataModule(**{"data": LINES, "tokenizer": TOKENIZER, **arguments}).setup()


@pytest.mark.parametrize(
    ("label", "message"), [(7, "does not have: 7"), (-1, "have: -1"), (1.5, "have: 1.5"), (None, "0 has no label")]
)
def test_a_class_of_validation_is_one_of_training(label, message):
    data = {"train": [("a", 0), ("b", 1)], "validation": [("c", label)]}
    with pytest.raises(DataError, match=message):
        UniversalDataModule(data, TOKENIZER, "classification").setup()


@pytest.mark.parametrize("seed", range(6))
def test_a_class_that_occurs_once_may_fall_on_either_side(seed):
    pairs = [*zip(LINES[:28], ["a", "b"] * 14), ("rare words", "c"), ("rarer words", "d")]
    module = UniversalDataModule(pairs, TOKENIZER, "classification", validation_fraction=0.5, seed=seed)
    module.setup()
    assert module.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("named", [None, "label"])
def test_an_example_that_a_dataset_marks_as_unlabelled_is_never_given_a_class(named):
    datasets = pytest.importorskip("datasets")
    columns = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=columns)
    with pytest.raises(DataError, match="Example 2 has no label"):
        UniversalDataModule(data, TOKENIZER, "classification", label_column=named).setup()


def test_workers_pay_for_images_only():
    assert module_of("lm").workers == 0 and module_of("vision", workers=None).workers in (1, 2)
    assert module_of("lm").pin_memory is torch.cuda.is_available()
    batches = [[b["labels"].tolist() for b in module_of("vision", workers=w).train_dataloader()] for w in (0, 2)]
    assert batches[0] == batches[1]


def test_tokens_are_kept_and_found_again(tmp_path, monkeypatch):
    first = module_of("seq2seq", cache_dir=tmp_path)
    first.setup()
    assert len(list(tmp_path.iterdir())) == 4  # sources and targets of both parts
    monkeypatch.setattr("utils.tokenization.packing.Encoder", None)
    again = module_of("seq2seq", cache_dir=tmp_path)
    assert again.fingerprint == first.fingerprint

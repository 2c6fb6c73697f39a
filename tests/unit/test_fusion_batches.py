"""Which rows a step reads, what a batch holds, and that the loss is on answers alone."""

import pytest
import torch
from torch.nn import functional as F

from tokensieve.data.llava import read_rows
from tokensieve.errors import ConfigError
from tokensieve.train.fusion.batches import PROBLEMS, Conversations, Given, order_of
from tokensieve.train.fusion.tokens import IGNORED, Reader
from toys.fusion_toys import rows_of, toy, write_rows


@pytest.fixture(scope="module")
def loaded():
    return toy()


def conversations(tmp_path, loaded, pictures=8, text_only=2, limit=2048):
    file, images = write_rows(tmp_path, rows_of(pictures, text_only))
    found = read_rows(file, images)
    return Conversations(found, Reader(loaded.processor, "chat", limit)), found


def test_a_pass_reads_every_row_once_and_the_seed_decides(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded, 11, 5)
    for order in ("length", "random"):
        places = order_of(rows, 4, 8, seed=1, order=order)
        assert len(places) == 32
        assert sorted(places[:16]) == sorted(places[16:]) == list(range(16))
        assert places[:16] != places[16:]  # another order in the second pass
        assert places == order_of(rows, 4, 8, seed=1, order=order)
        assert places != order_of(rows, 4, 8, seed=2, order=order)
        assert places[:12] == order_of(rows, 4, 3, seed=1, order=order)  # a shorter run begins so
    assert list(Given(places)) == places
    assert len(Given(places)) == 32


def test_rows_of_a_step_are_alike(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded, 32, 16)
    places = order_of(rows, 8, 6, seed=0)
    steps = [places[i : i + 8] for i in range(0, 48, 8)]
    kinds = [{rows.rows[place].picture is None for place in step} for step in steps]
    assert kinds.count({True}) == 2  # text only
    assert kinds.count({False}) == 4

    def spread(order):
        places = order_of(rows, 8, 6, seed=0, order=order)
        chosen = [[rows.lengths[p] for p in places[i : i + 8]] for i in range(0, 48, 8)]
        return sum(max(step) * len(step) - sum(step) for step in chosen)

    assert spread("length") < spread("random") / 2  # padding


def test_fewer_rows_than_a_batch_are_refused(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded, 3, 0)
    with pytest.raises(ConfigError, match=r"at least 4 rows, one batch. Got 3"):
        order_of(rows, 4, 1, 0)


def test_rows_that_are_too_long_are_bad_rows(tmp_path, loaded):
    rows, found = conversations(tmp_path, loaded, limit=90)
    assert 0 < len(rows) < 10
    assert {error.reason for error in found.bad} == {"too long"}
    assert str(found.bad[0]).startswith(str(found.file))
    assert max(rows.lengths) <= 90


def test_lengths_count_visual_tokens(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded)
    batch = rows.collate([rows[i] for i in range(len(rows))])
    assert batch["attention_mask"].sum(1).tolist() == rows.lengths
    assert (batch["input_ids"] == 4).sum(1).tolist() == [4] * 8 + [0] * 2
    assert batch["pixel_values"].shape == (8, 3, 48, 48)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


def test_the_loss_is_the_cross_entropy_of_answers(tmp_path, loaded):
    """By a loop over answers' tokens, each row by itself."""
    rows, _ = conversations(tmp_path, loaded)
    items = [rows[0], rows[9], rows[3]]
    batch = rows.collate(items)
    batch.pop(PROBLEMS)
    with torch.no_grad():
        loss = loaded.model(**batch).loss
        losses = []
        for item in items:
            pixels = {} if item["pixels"] is None else {"pixel_values": item["pixels"][None]}
            logits = loaded.model(input_ids=torch.tensor([item["ids"]]), **pixels).logits[0]
            for place, label in enumerate(item["labels"]):
                if label != IGNORED:
                    losses.append(F.cross_entropy(logits[place - 1], torch.tensor(label)))
    words = "red </s>no, not at all</s>0</s>black black black black</s>yes</s>".replace(
        " </s>", "</s>"
    )
    assert len(losses) == len(words.replace("</s>", "/"))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_a_batch_of_text_reaches_every_parameter_and_changes_nothing(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded)
    batch = rows.collate([rows[8], rows[9]])
    assert batch["pixel_values"].shape == (1, 3, 48, 48)
    batch.pop(PROBLEMS)
    model = loaded.model
    model.zero_grad()
    found = model(**batch)
    found.loss.backward()
    grads = [p.grad for p in model.model.multi_modal_projector.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)
    alone = torch.tensor([rows[8]["ids"]])
    with torch.no_grad():
        logits = model(input_ids=alone).logits
    torch.testing.assert_close(found.logits[:1, : alone.shape[1]], logits)
    model.zero_grad()


def test_a_picture_that_cannot_be_read_teaches_nothing(tmp_path, loaded):
    rows, _ = conversations(tmp_path, loaded)
    rows.rows[1].picture.write_bytes(b"no picture")
    item = rows[1]
    assert set(item["labels"]) == {IGNORED}
    place, message = item[PROBLEMS]
    assert place == 1
    assert f"{rows.file}, row 2 (id p1): Expected a picture" in message
    batch = rows.collate([rows[0], item])
    assert batch[PROBLEMS] == [(1, message)]
    assert (batch["labels"][1] == IGNORED).all()
    assert torch.equal(batch["pixel_values"][1], rows.blank())

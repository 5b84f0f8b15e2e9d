"""A reader reads each text as `decode` does, whatever it has read before, and most without it."""

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from test_messages import DATE, RANDOM, SAMPLE, TABLE, TOKENS, filled, template

from ratebridge import shapes
from ratebridge.errors import Refused, Unreadable
from ratebridge.messages import HEARTBEAT, MAX_TEXT, THE_HEARTBEAT, Heartbeat, Request, decode
from ratebridge.messages import encode_reply as encode
from ratebridge.shapes import LONGEST, MOST_SHAPES, Reader


def outcome(read: Callable[[bytes], Heartbeat | Request], frame: bytes) -> object:
    """All that can be told of a reading; any other exception fails the test."""
    try:
        found = read(frame)
    except (Refused, Unreadable) as problem:
        return type(problem), vars(problem), str(problem)
    if isinstance(found, Heartbeat):
        return found
    facts = found.id, str(found.stake), found.currency, found.instant, found.date
    return facts, found.instant.tzinfo, encode(found, "207.52054", DATE)


class OneByOne(Reader):
    """A reader, as the bridge uses it, of single texts."""

    def one(self, frame: bytes) -> Heartbeat | Request:
        [request] = self.read([frame])
        return self.walk(frame) if request is None else request


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> OneByOne:
    """One that learns from each request."""
    monkeypatch.setattr(shapes, "LEARN_EVERY", 1)
    return OneByOne()


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts that no shape has read."""
    texts: list[bytes] = []

    def walk(text: bytes) -> Heartbeat | Request:
        texts.append(text)
        return decode(text)

    monkeypatch.setattr(shapes, "decode", walk)
    return texts


@settings(max_examples=40)
@given(RANDOM)
def test_what_was_read_before_changes_no_reading(rnd: random.Random):
    reader = OneByOne()
    templates = [template(rnd, wrong=rnd.random() < 0.2)[0] for _ in range(2)]
    for _ in range(12):
        text = filled(rnd.choice(templates), template(rnd)[1]).decode()
        if rnd.random() < 0.5:
            # Other values, and what is hardly a value, in a request that has been read.
            reader._unlike = 0
            outcome(reader.one, text.encode())
            for _ in range(rnd.choice((0, 1, 1, 2))):
                at = rnd.randrange(len(text))
                text = text[:at] + rnd.choice((*TOKENS, *"0123456789-.e")) + text[at + 1 :]
        frame = rnd.choice((text, text, rnd.choice(TABLE))).encode()
        assert outcome(reader.one, frame) == outcome(decode, frame)


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE.decode(),
        json.dumps(json.loads(SAMPLE)),
        json.dumps(json.loads(SAMPLE), indent=2, sort_keys=True),
        SAMPLE.decode().replace('"odds"', '"live":true,"house":"caf\u00e9","type":"x","odds"'),
        SAMPLE.decode().replace('"odds"', '"tags":["a",{"b":[1,null]}],"odds"'),
        SAMPLE.decode().replace(":456", ':"9f8e7d6c-1b2a"'),
    ],
)
def test_a_request_like_one_before_is_read_by_its_shape(text, reader, walked):
    reader.one(text.encode())
    for old, new in (
        *(("253.67", of) for of in ("1", "0.5", "-0.00", "253.670000000000020")),
        *(
            ('"USD"', '"GBP"'),
            ("42.324Z", "42Z"),
            ("324Z", "324123+00:00"),
            ("324Z", "324-07:30"),
            ("05-18T", "05-17t"),
        ),
        *(("2.2", "3"), ("2.2", "-17.25"), ("true", "false"), ("caf\u00e9", ""), ("-1b2a", "")),
        ("456", "7"),
    ):
        frame = text.replace(old, new).encode()
        assert outcome(reader.one, frame) == outcome(decode, frame)
    assert walked == [text.encode()]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(("253.67", of) for of in ("01", "1.", ".5", "+1", "1e5", '"1"', "1" * 16, "null")),
        *(("2.2", of) for of in ("02.2", "2.", "-", "NaN", '"\x01"', "nul", "2 .2")),
        *(("456", of) for of in ("null", "007", "[1]", '"a"b"', '"\x01"')),
        *(('"USD"', of) for of in ('"usd"', '"USDT"', "840", '"US\u00c9"')),
        *(("2021-05-18T", of) for of in ("2021-02-30T", "0000-01-01T", "20210518T", "2021-05-18")),
        *(("42.324Z", of) for of in ("42.324", "60Z", "42.9999996Z", "42.324+99:00", "42,3Z")),
        *(('"stake"', of) for of in ('"Stake"', '"odds"', '"currency"')),
        *(('"message"', of) for of in ('"heartbeat"', '"massage"')),
        *(("}}", of) for of in ("}", "}}}", '},"id":7}', ',"stake":1}}')),
    ],
)
def test_a_text_out_of_the_ordinary_is_read_by_decode(old, new, reader):
    reader.one(SAMPLE)
    frame = SAMPLE.decode().replace(old, new, 1).encode()
    assert frame != SAMPLE
    assert outcome(reader.one, frame) == outcome(decode, frame)


def test_a_text_over_64_kib_is_dropped_in_a_known_spelling_too(reader):
    frame = SAMPLE.replace(b":456", b':"id"')
    reader.one(frame)
    size = MAX_TEXT - len(frame) + len("id")
    frames = [frame.replace(b':"id"', b':"%b"' % (b"x" * size)) for size in (size, size + 1)]
    assert isinstance(reader.one(frames[0]), Request)
    with pytest.raises(Unreadable, match="too-long"):
        reader.one(frames[1])


def spelt(number: int) -> bytes:
    """A request with its own spelling for each number."""
    return SAMPLE.replace(b"odds", b"odds-%d" % number)


def test_each_tenth_without_a_shape_becomes_one_and_the_oldest_of_them_goes(walked, monkeypatch):
    monkeypatch.setattr(shapes, "LEARN_EVERY", 10)
    reader = OneByOne()
    assert reader.one(HEARTBEAT) is THE_HEARTBEAT
    for number in range(MOST_SHAPES + 1):
        for _ in range(20):
            reader.one(spelt(number))
    assert len(walked) == 2 + MOST_SHAPES * 10
    walked.clear()
    for number in (MOST_SHAPES, 1, 0):
        reader.one(spelt(number))
    assert walked == [spelt(0)]


def test_a_shape_in_use_is_kept_and_the_one_without_use_goes(reader, walked):
    for number in (*range(MOST_SHAPES), 0, MOST_SHAPES):
        reader.one(spelt(number))
    walked.clear()
    for number in (0, 2, 1):
        reader.one(spelt(number))
    assert walked == [spelt(1)]


def test_a_shape_that_is_known_takes_no_place_of_others(reader, walked):
    reader.one(spelt(1))
    for _ in range(MOST_SHAPES):
        reader.one(SAMPLE.replace(b"42.324Z", b"42"))
    assert len(walked) == 1 + MOST_SHAPES
    reader.one(spelt(1))
    assert len(walked) == 1 + MOST_SHAPES


@pytest.mark.parametrize(
    "frame",
    [
        SAMPLE.replace(b"odds", b"o" * LONGEST),
        SAMPLE.replace(b"odds", rb"\u006fdds"),
        SAMPLE.replace(b"2.2", b"[%b1]" % (b"1," * 40)),
    ],
)
def test_a_text_that_is_long_or_has_many_values_or_escapes_becomes_no_shape(frame, reader, walked):
    for _ in range(3):
        reader.one(frame)
    assert walked == [frame] * 3

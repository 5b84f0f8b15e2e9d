"""Bad messages and the answer that each must get, for the tests of every layer.

`refused` gets an error reply, `dropped` no reply at all, `converted` a reply.
Rows with `late` pass `decode` and are refused by what looks at rates and clocks.
All frames can cross a websocket as texts.
"""

import json
from collections.abc import Iterable
from typing import Final, Literal

import attrs

DEEP: Final = 20_000  # levels: far over any recursion limit, and all the brackets fit in 64 KiB


@attrs.frozen
class BadMessage:
    """One row. `word` is what the error text must hold, the reason of the drop, or the new stake.

    `id` is the id of the reply as raw JSON. A row that converts is in euro already, so
    that it needs no rate.
    """

    name: str
    frame: bytes = attrs.field(repr=lambda frame: repr(frame[:60]))
    outcome: Literal["refused", "dropped", "converted", "heartbeat"]
    word: str = ""
    id: bytes = b"7"
    late: bool = False


def message(
    stake: str | bytes = b"1.5",
    currency: str | bytes = b'"EUR"',
    date: str | bytes = b'"2021-05-18T21:32:42.324Z"',
    *,
    id: str | bytes = b"7",  # noqa: A002 - what the wire calls it
    more: str | bytes = b"",
) -> bytes:
    """A request made of raw JSON values; `more` is put into the payload's end."""
    parts = [b'{"type":"message","id":', id, b',"payload":{"stake":', stake, b',"currency":']
    parts += [currency, b',"date":', date, more, b"}}"]
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


def _refused(name: str, frame: bytes, word: str, id: bytes = b"7") -> BadMessage:  # noqa: A002
    return BadMessage(name, frame, "refused", word, id)


def _dropped(name: str, frame: str | bytes, reason: str) -> BadMessage:
    return BadMessage(name, frame.encode() if isinstance(frame, str) else frame, "dropped", reason)


def _stakes(word: str, stakes: Iterable[str]) -> list[BadMessage]:
    return [_refused(f"stake {_short(stake)}", message(stake), word) for stake in stakes]


def _dates(word: str, dates: Iterable[str]) -> list[BadMessage]:
    return [
        _refused(f"date {_short(ascii(text))}", message(date=json.dumps(text)), word)
        for text in dates
    ]


def _currencies(word: str, codes: Iterable[str]) -> list[BadMessage]:
    return [_refused(f"currency {_short(code)}", message(currency=code), word) for code in codes]


NOT_JSON: Final = [
    _dropped("nothing", "", "not-json"),
    _dropped("a space", " ", "not-json"),
    _dropped("words", "hello there", "not-json"),
    _dropped("a brace", "{", "not-json"),
    _dropped("NUL", b"\0", "not-json"),
    _dropped("a mark of byte order", b"\xef\xbb\xbf" + message(), "not-json"),
    _dropped("two messages in one", message() + message(), "not-json"),
    _dropped("a trailing comma", b'{"type":"message","id":7,}', "not-json"),
    _dropped("single quotes", "{'type':'message','id':7}", "not-json"),
    _dropped("a comment", b'{"type":"message",/* hi */"id":7}', "not-json"),
    _dropped("a name without quotes", b'{type:"message","id":7}', "not-json"),
    _dropped("cut short", message()[:-1], "not-json"),
    _dropped("cut in a string", message()[:20], "not-json"),
    _dropped("cut in an escape", b'{"type":"message","id":"\\', "not-json"),
    _dropped("a raw newline in a string", b'{"type":"message","id":"a\nb"}', "not-json"),
    _dropped("a raw ESC in a string", b'{"type":"message","id":"\x1b[2J"}', "not-json"),
    _dropped("an unknown escape", b'{"type":"message","id":"\\x41"}', "not-json"),
    _dropped("an escape of three digits", b'{"type":"message","id":"\\u123"}', "not-json"),
    _dropped("NaN", message("NaN"), "not-json"),
    _dropped("Infinity", message("-Infinity"), "not-json"),
    _dropped("NaN where nobody looks", message(more=b',"odds":NaN'), "not-json"),
    _dropped("a leading zero", message("01"), "not-json"),
    _dropped("a leading plus", message("+1"), "not-json"),
    _dropped("a leading point", message(".5"), "not-json"),
    _dropped("a trailing point", message("5."), "not-json"),
    _dropped("an underscore in a number", message("1_000"), "not-json"),
    _dropped("a number in hexadecimal", message("0x10"), "not-json"),
    _dropped("digits of another script", message("\uff11\uff12"), "not-json"),
    _dropped("an exponent without digits", message("1e"), "not-json"),
    _dropped("two minus signs", message("--1"), "not-json"),
    *(
        _dropped(name, text, "not-json")
        for name, text in [
            ("the first half of a pair", message(more=b',"x":"\\ud83d"')),
            ("the second half of a pair", message(more=b',"x":"\\ude00"')),
            ("half a pair behind one", message(more=b',"x":"\\ud83d\\ud83d\\ude00"')),
            ("half a pair deep inside", message(more=b',"x":[{"y":["\\uDEAD"]}]')),
            ("half a pair in a name", message(more=b',"\\ud83d":1')),
            ("half a pair as the currency", message(currency=b'"\\ud83d"')),
            ("half a pair in the id", message(id=b'"\\uD83d\\\\udc00 \\ud83D\\ude00\\n"')),
            ("half a pair in a heartbeat", b'{"type":"heartbeat","x":"\\udfff"}'),
        ]
    ),
]

_DEEP: Final = b"[" * DEEP + b"]" * DEEP

NOT_PARSED: Final = [
    _dropped("65,537 bytes", message(more=b" " * (65_537 - len(message()))), "too-long"),
    _dropped("a million brackets", b"[" * 1_000_000, "too-long"),
    *(
        _dropped(name, text, "too-deep")
        for name, text in [
            ("101 levels deep", message(more=b',"x":' + b"[" * 99 + b"]" * 99)),
            (
                "101 levels outside",
                b'{"x":%b,' % (b'{"":' * 100 + b"1" + b"}" * 100) + message()[1:],
            ),
            ("deep in the payload", message(more=b',"x":' + _DEEP)),
            ("deep before the id", b'{"x":' + _DEEP + b"," + message()[1:]),
            ("deep by turns", message(more=b',"x":' + b'{"a":[' * 1000 + b"]}" * 1000)),
            ("deep in the stake", message(_DEEP)),
            ("deep in the id", message(id=_DEEP)),
            ("deep behind brackets in strings", message(id=b'"]\\"]\\\\"', more=b',"]":' + _DEEP)),
            ("deep and without an end", b"[" * DEEP),
            ("deep and closed wrongly", message(more=b',"x":' + b"[" * DEEP + b"}" * DEEP)),
        ]
    ),
]

UNANSWERABLE: Final = [
    _dropped("an array", b"[1,2]", "not-an-object"),
    _dropped("a string", b'"heartbeat"', "not-an-object"),
    _dropped("a number bomb alone", b"1e999999999", "not-an-object"),
    _dropped("null", b"null", "not-an-object"),
    _dropped("an empty object", b"{}", "no-type"),
    _dropped("no type", b'{"id":7,"payload":{}}', "no-type"),
    _dropped("a type in capitals", b'{"Type":"message","id":7}', "no-type"),
    _dropped("an unknown type", b'{"type":"refund","id":7}', "unknown-type"),
    _dropped("an error", b'{"type":"error","id":7,"message":"no"}', "unknown-type"),
    _dropped("an empty type", b'{"type":"","id":7}', "unknown-type"),
    _dropped("the type with a space", b'{"type":"message ","id":7}', "unknown-type"),
    _dropped("a type of null", b'{"type":null,"id":7}', "unknown-type"),
    _dropped("a type that is a number", b'{"type":1,"id":7}', "unknown-type"),
    _dropped("a type that is an object", b'{"type":{"type":"message"},"id":7}', "unknown-type"),
    _dropped("the last type counts", b'{"type":"message","id":7,"type":"x"}', "unknown-type"),
    _dropped("no id", b'{"type":"message","payload":{}}', "no-id"),
    _dropped("an id of null", message(id="null"), "no-id"),
    _dropped("an id in the payload", b'{"type":"message","payload":{"id":7}}', "no-id"),
]

HEARTBEATS: Final = [
    BadMessage("a heartbeat", b'{"type":"heartbeat"}', "heartbeat"),
    BadMessage("a heartbeat with spaces", b' { "type" : "heartbeat" }\r\n', "heartbeat"),
    BadMessage("a heartbeat with more in it", b'{"n":1,"type":"heartbeat","at":[]}', "heartbeat"),
    BadMessage("a heartbeat in escapes", b'{"t\\u0079pe":"\\u0068eartbeat"}', "heartbeat"),
]

PAYLOADS: Final = [
    _refused("no payload", b'{"type":"message","id":7}', "payload"),
    _refused("a payload of null", b'{"type":"message","id":7,"payload":null}', "payload"),
    _refused("a payload in an array", b'{"type":"message","id":7,"payload":[{}]}', "payload"),
    _refused("a payload in a string", b'{"type":"message","id":7,"payload":"{}"}', "payload"),
    _refused("an empty payload", b'{"type":"message","id":7,"payload":{}}', "stake is missing"),
    _refused(
        "no currency", b'{"type":"message","id":7,"payload":{"stake":1}}', "currency is missing"
    ),
    _refused(
        "no date",
        b'{"type":"message","id":7,"payload":{"stake":1,"currency":"EUR"}}',
        "date is missing",
    ),
    *(
        _refused(f"twice {name}, {number}", frame, f"{name} is given twice")
        for number, (name, frame) in enumerate(
            [
                ("type, id or payload", b'{"type":"x",' + message()[1:]),
                ("type, id or payload", message()[:-1] + b',"id":7}'),
                ("type, id or payload", b'{"payload":{},' + message()[1:]),
                ("stake", message("1e99", more=b',"stake":2')),
                ("stake", message("[1]", more=b',"stake":2')),
                ("stake", message('"x"', more=b',"stake":2')),
                ("stake", message(more=b',"stake":{"stake":2}')),
                ("stake", message(more=b',"st\\u0061ke":2')),
                ("currency", message(more=b',"currency":"EUR"')),
                ("date", message(more=b',"date" :\n"2021-05-18T21:32:42.324Z"')),
            ]
        )
    ),
]

STAKES: Final = [
    *_stakes(
        "is not a number",
        [
            *('"2.20"', '"NaN"', '"Infinity"', '""', '"\\u0031"', "true", "false", "null"),
            *("[1]", "[]", '{"amount":1}', '"\uff11\uff12"', '"1_000"'),
            '"' + "9" * 5000 + '"',
        ],
    ),
    *_stakes(
        "is out of range",
        [
            *("1e999999", "-1e999999", "1e99999999", "1e99999999999999999999", "1E+15"),
            *("1e-999999", "1e-99999999999999999999", "1e-20", "10e-20", "0." + "0" * 19 + "1"),
            *("1000000000000000", "-1000000000000000", "1000000000000000.0", "1" + "0" * 60_000),
            *("9" * 60_000, "1." + "0" * 19 + "1", "0." + "1" * 60_000, "1e-" + "0" * 5000 + "1"),
            *("1." + "0" * 20, "1" + "0" * 5000 + "e-5000"),
        ],
    ),
]

CURRENCIES: Final = [
    *_currencies("is not a string", ["1", "null", "true", '["EUR"]', '{"code":"EUR"}']),
    *_currencies(
        "is not three capital letters",
        [
            *('""', '"eur"', '"EURO"', '"EU"', '" EUR"', '"EUR\\n"', '"E\\u0000R"', '"\\u0415UR"'),
            *('"\uff25\uff35\uff32"', '"../"', '"\\u202eRUE"', '"\\u001b[2J"', '"A1B"'),
            '"' + "X" * 50_000 + '"',
        ],
    ),
]

DATES: Final = [
    *(
        _refused(f"date {value}", message(date=value), "is not a string")
        for value in ("1621373562", "null", "true", '["2021-05-18"]', "{}")
    ),
    *_dates(
        "is not an ISO 8601 date",
        [
            *("", "yesterday", "2021", "2021-05", "18.05.2021", "05/18/2021", "20210518"),
            *("20210518T213242Z", "2021-W20-2", "2021-W20-2T21:32:42Z", "2021-138", "1621373562"),
            *("2021-05-18T", "2021-05-18T21", "2021-05-18T21Z", "2021-05-18T2132Z"),
            *("2021-05-18T24:00:00Z", "2021-05-18T24:00Z", "2021-05-18T21:60:00Z"),
            *("2021-05-18T21:32:61Z", "2021-05-18T21:32:60Z", "2021-05-18T23:59:60+01:00"),
            *("2021-05-18T21:32:42,324Z", "2021-05-18T21:32:42.Z"),
            "2021-05-18T21:32:42.3240000001Z",
            *("2021-05-18T21:32:42+24:00", "2021-05-18T21:32:42+1", "2021-05-18T21:32:42+01:60"),
            *("2021-05-18T21:32:42 Z", " 2021-05-18", "2021-05-18\n", "2021-05-18T21:32:42ZZ"),
            *("2021-05-18T21:32:42Europe/Paris", "+2021-05-18", "-2021-05-18", "12021-05-18"),
            *("\uff12021-05-18", "2021-05-18T21:32:42\u2212" + "01:00", "2021\u201305\u201318"),
            *("2021-05-18\u0000", "\u001b[31m2021-05-18", "9" * 5000),
        ],
    ),
    *_dates(
        "is not a day",
        [
            *("2021-02-30", "2021-02-29T12:00:00Z", "2021-13-01", "2021-00-10", "2021-04-31"),
            "0000-01-01",
        ],
    ),
    *_dates("is out of range", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"]),
    *(
        BadMessage(f"date {text}", message(date=f'"{text}"'), "refused", word, late=True)
        for text, word in [
            ("0001-01-01T00:00:00Z", "is before 1999-01-04"),
            ("1999-01-03T23:59:59.999Z", "is before 1999-01-04"),
            ("1999-01-04T00:30:00+01:00", "is before 1999-01-04"),
            ("9999-12-31T23:59:59.999999999Z", "is in the future"),
        ]
    ),
]

WHOLE: Final = [
    *(
        _refused(f"id {name}", message("true", id=raw), "stake true", raw)
        for name, raw in [
            ("of 19 digits", b"9223372036854775807"),
            ("of 400 digits", b"1" * 400),
            ("that is a number bomb", b"1e999999999"),
            ("that is a long fraction", b"1.0000000000000000000000000000000000010"),
            ("that is minus zero", b"-0.0"),
            ("that is empty", b'""'),
            ("that is text", b'"a\\u0000\\"\\/\\ud83d\\ude00b"'),
            ("that is false", b"false"),
            ("that is an array", b'[ 1 , {"a":null} ]'),
        ]
    ),
    _refused("the last id counts", message()[:-1] + b',"id":"x"}', "given twice", b'"x"'),
]

CONVERTED: Final = (
    [
        BadMessage(f"stake {_short(stake)}", message(stake), "converted", euro)
        for stake, euro in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.000000", "0"),
            ("0e99999999999999999999", "0"),
            ("0.0e-99999999999999999999", "0"),
            ("0." + "0" * 60_000, "0"),
            ("-0.000001", "0"),
            ("-0.000005", "0"),
            ("-0.000015", "-0.00002"),
            ("0.0000050000000000000", "0"),
            ("0.0000050000000000001", "0.00001"),
            ("0.000025", "0.00002"),
            ("1e-19", "0"),
            ("1E+2", "100"),
            ("1.5e1", "15"),
            (
                "1e00000000000000000000000000000000000000000000000000000000000000000000000000001",
                "10",
            ),
            ("1000000000000.12345", "1000000000000.12345"),
            ("999999999999999.9999949999999999999", "999999999999999.99999"),
            ("999999999999999.9999999999999999999", "1000000000000000"),
            ("-999999999999999.9999999999999999999", "-1000000000000000"),
            ("1e14", "100000000000000"),
            ("100000000000000e0", "100000000000000"),
        ]
    ]
    + [
        BadMessage(name, frame, "converted", "1.5")
        for name, frame in [
            ("exactly 64 KiB", message(more=b" " * (65_536 - len(message())))),
            ("100 levels deep", message(more=b',"x":%b,"y":[]' % (b"[" * 98 + b"]" * 98))),
            ("brackets in strings", message(more=b',"\\"[":"\\\\","x":"%b"' % (b"[" * 500))),
            ("20,000 lists", message(more=b',"x":[[]' + b",[]" * 20_000 + b"]")),
            ("two of another name", message(more=b',"x":1,"x":2')),
            (
                "our names elsewhere",
                b'{"stake":0,"date":[],"x":{"stake":0},'
                + message(more=b',"x":["stake",{"date":0}],"id":1,"type":""')[1:],
            ),
            ("a whole pair", message(more=b',"x":"\\ud83d\\ude00"')),
            ("no pair at all", message(more=b',"x":"\\\\ud83d"')),
            ("U+FFFF and NUL in escapes", message(more=b',"x":"\\uffff\\u0000"')),
            ("NUL in a name", message(more=b',"\\u0000":1')),
            ("a name of no characters", message(more=b',"":1')),
            ("number bombs where nobody looks", message(more=b',"x":1e999999999')),
        ]
    ]
    + [
        BadMessage(f"date {text}", message(date=f'"{text}"'), "converted", "1.5")
        for text in [
            *("2021-05-18", "2021-05-18T21:32", "2021-05-18 21:32:42", "2021-05-18t21:32:42z"),
            *(
                "2021-05-18T21:32:42.3",
                "2021-05-18T21:32:42.324567891Z",
                "2021-05-18T21:32:42-00:00",
            ),
            *("2021-05-18T23:59:59+23:59", "2021-05-18T00:00:00-2359", "2021-05-18T21:32:42+05"),
            *("2016-12-31T23:59:60Z", "2017-01-01T00:59:60.999+01:00", "2020-02-29", "1999-01-04"),
        ]
    ]
)

ALL = [*NOT_JSON, *NOT_PARSED, *UNANSWERABLE, *HEARTBEATS, *PAYLOADS]
ALL += [*STAKES, *CURRENCIES, *DATES, *WHOLE, *CONVERTED]

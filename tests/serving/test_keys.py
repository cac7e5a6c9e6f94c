from __future__ import annotations

import hashlib

import pytest

from triptych.serving.keys import draw_key, find_key, read_key


def test_a_drawn_key_is_let_in_by_its_entry_and_is_not_in_it() -> None:
    key, entry = draw_key("laptop")
    assert len(key) >= 43
    assert key not in entry
    found = find_key([read_key("another"), read_key(entry)], key.encode())
    assert found is not None
    assert found.name == "laptop"


def test_no_two_are_drawn_alike() -> None:
    assert len({draw_key("a")[0] for _ in range(100)}) == 100


def test_an_entry_is_no_key() -> None:
    """Whoever reads the settings cannot call."""
    key, entry = draw_key("laptop")
    assert find_key([read_key(entry)], entry.encode()) is None
    assert find_key([read_key(entry)], hashlib.sha256(key.encode()).hexdigest().encode()) is None


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes must not tell how many keys were before the one that fits."""
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    find_key([read_key("a"), read_key("b"), read_key("c")], b"a")
    assert len(compared) == 3


def test_a_key_does_not_show_its_hash() -> None:
    assert repr(read_key("secret")) == f"Key(name='{hashlib.sha256(b'secret').hexdigest()[:8]}')"


@pytest.mark.parametrize("entry", ["", "two words", "schlüssel", "tab\t", "x:sha256:", "sha256:aa", "na me:sha256:" + "0" * 64])
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"a (token|hashed key)"):
        read_key(entry)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a:b", "x" * 65, "ü"])
def test_a_name_must_fit_into_an_entry(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a key"):
        draw_key(name)

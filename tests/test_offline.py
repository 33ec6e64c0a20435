"""Nobody waits for a network that is not there."""

import socket

import pytest
from huggingface_hub import constants

from fairanon.offline import without_retries


@pytest.mark.parametrize(
    ("proxy", "reached", "offline"),
    [
        ("", True, False),
        ("", False, True),
        ("https_proxy", False, False),
        ("all_proxy", False, False),
        ("no_proxy", False, True),
    ],
)
def test_the_hubs_library_is_told_that_there_is_no_network(monkeypatch, proxy, reached, offline):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv(proxy, "http://proxy:1")
    asked = []

    def address(host, port):
        asked.append(host)
        if not reached:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), without_retries():
        assert offline == constants.HF_HUB_OFFLINE
        raise KeyError("whatever happens")
    assert constants.HF_HUB_OFFLINE is False
    assert asked == ([] if proxy in ("https_proxy", "all_proxy") else ["huggingface.co"])


def test_who_chose_to_be_offline_stays_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with without_retries():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is True


def test_threads_that_overlap_leave_it_as_it_was(monkeypatch):
    monkeypatch.setattr("fairanon.offline.has_no_address", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first, second = without_retries(), without_retries()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE is True
    second.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE is False

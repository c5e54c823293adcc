"""What a page that is open in the browser has complained about, and asked the network for."""

import json
from typing import Any

from selenium.webdriver import Chrome


def log_of(browser: Chrome, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = browser.get_log(name)  # type: ignore[no-untyped-call]
    return entries


def complaints(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in log_of(browser, "browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser: Chrome) -> list[str]:
    """What the open page asked for, itself included."""
    events = [json.loads(entry["message"])["message"] for entry in log_of(browser, "performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["request"]["url"] for event in sent if event["documentURL"] == browser.current_url]

"""The harness itself, on an app of a few lines."""

import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.harness import PHONE, Server, idle

TOY = """
import os
import streamlit as st

count = st.slider("Count", 0, 10, 3, key="count", bind="query-params")
st.write(f"{count} of {os.environ['ACTISCOPE_STORE'] != ''}")
print("counted", count)
"""


def test_a_server_of_its_own(browser: Browser, tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    with Server(tmp_path / "toy.py") as server:
        page = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
        page.goto(server.address + "/?count=4")
        idle(page)
        assert "counted 4" in server.log()
        page.get_by_role("slider").first.press("ArrowRight")
        expect(page.get_by_text("5 of True")).to_be_visible()
        idle(page)
        assert page.url.endswith("count=5")
        page.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.address, timeout=1)


def test_a_script_that_ends_by_itself_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="ended by itself"), Server(tmp_path / "missing.py"):
        pass

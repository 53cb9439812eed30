"""Keys, secrets and webhooks by hand; the way in and out; the overview."""

import re

from playwright.sync_api import Page, expect

from models.tables import Job, new_id
from tests.dashboard.conftest import SignIn, assert_accessible, assert_fits_a_phone
from tests.service import Service


def test_sign_in_with_a_key_and_out_again(sign_in: SignIn, service: Service) -> None:
    page = sign_in("read")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/ui/sign-in")
    page.goto(f"{service.url}/ui/jobs")
    page.wait_for_url("**/ui/sign-in?next=/ui/jobs")
    assert_accessible(page)
    page.get_by_label("Key").fill("lk_nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not a valid key")
    page.get_by_label("Key").fill(service.key("read"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    page.goto(f"{service.url}/ui/nothing")
    assert page.get_by_text("not_found").count() == 1


def test_the_theme_is_remembered(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.goto(f"{service.url}/ui/settings")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_key_is_made_used_and_revoked(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/ui/settings")
    page.get_by_label("Name").first.fill("checkout")
    page.locator("[name=scopes][value=read]").check()
    page.get_by_role("button", name="Make a key").click()
    secret = page.locator("[data-made] code").first.text_content()
    assert secret is not None
    assert re.fullmatch("lk_.*", secret)
    row = page.get_by_role("row").filter(has_text="checkout")
    expect(row).to_contain_text("predict, read")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")


def test_a_key_of_the_past_is_refused_beside_its_field(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/ui/settings")
    page.get_by_label("Expires").fill("2020-01-01")
    page.get_by_role("button", name="Make a key").click()
    expect(page.locator("[data-problem='/expires_at']")).to_contain_text("lies in the past")


def test_secrets_and_webhooks(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/ui/settings")
    form = page.locator("[data-new-secret]")
    form.get_by_label("Name").fill("hub-token")
    form.get_by_label("Value").fill("hf_canary")
    form.get_by_role("button", name="Keep it").click()
    expect(page.locator("#secrets")).to_contain_text("hub-token")
    assert "hf_canary" not in page.content()
    page.get_by_label("Address").fill("https://127.0.0.1/hook")
    page.get_by_role("button", name="Add it").click()
    expect(page.locator("[data-new-webhook] .problem")).to_be_visible()
    assert_accessible(page)
    assert_fits_a_phone(page)


def test_without_admin_there_are_no_keys(sign_in: SignIn, service: Service) -> None:
    page = sign_in("read")
    page.goto(f"{service.url}/ui/settings")
    expect(page.locator("#keys")).to_contain_text("Keys need the scope admin")
    expect(page.get_by_role("button", name="Make a key")).to_have_count(0)


def test_the_overview_lives(page: Page, service: Service) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.locator("#workers")).to_contain_text("No worker is there")
    with service.database.writing() as session:
        session.add(
            Job(
                id=new_id("job"),
                owner="default",
                name="waits",
                status="paused",
                device="cpu",
                spec={},
                resolved_spec={},
            )
        )
    expect(page.locator("#waiting")).to_contain_text("waits")  # nobody has reloaded it
    assert_accessible(page)
    assert_fits_a_phone(page)

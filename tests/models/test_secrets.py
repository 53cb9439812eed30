"""Secrets at rest: encrypted under a key that is not in the database, and readable over a change of keys."""

import stat
import threading

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text

from models import secrets
from models.database import Database
from models.errors import Conflict, Missing, StorageFailure
from models.secrets import Vault
from models.settings import Settings
from models.tables import Secret, Webhook, new_id

OLD, NEW = "o" * 32, "n" * 32
CANARY = "canary-b7f3"


def put(database: Database, vault: Vault, name: str = "hub", value: str = CANARY, owner: str = "me") -> None:
    with database.writing() as session:
        secrets.put(session, vault, owner, name, SecretStr(value))


def read(database: Database, vault: Vault, name: str = "hub") -> str:
    with database.reading() as session:
        return secrets.read(session, vault, "me", name).get_secret_value()


class TestVault:
    def test_what_is_sealed_says_nothing(self) -> None:
        vault = Vault([OLD])
        sealed = vault.seal(SecretStr(CANARY))
        assert CANARY not in sealed
        assert sealed != vault.seal(SecretStr(CANARY))
        opened = vault.open(sealed)
        assert opened.get_secret_value() == CANARY
        assert CANARY not in f"{opened} {opened!r} {vault!r} {vars(vault)}"
        assert OLD not in f"{vault!r} {vars(vault)} {vault.key_id}"

    def test_another_key_opens_nothing(self) -> None:
        with pytest.raises(StorageFailure) as caught:
            Vault([NEW]).open(Vault([OLD]).seal(SecretStr(CANARY)))
        assert caught.value.code == "secret_unreadable"

    def test_a_short_key_is_none(self) -> None:
        for keys in (["x" * 31], [OLD, ""], []):
            with pytest.raises(ValueError, match="LIMBECK_SECRET_KEY") as caught:
                Vault(keys)
            assert "xxx" not in str(caught.value)

    def test_a_key_is_made_once_for_its_owner_alone(self, settings: Settings) -> None:
        sealed = Vault.of(settings).seal(SecretStr(CANARY))
        assert stat.S_IMODE(settings.secret_key_file.stat().st_mode) == 0o600
        assert Vault.of(settings).open(sealed).get_secret_value() == CANARY
        assert [path.name for path in settings.data_dir.iterdir()] == ["secret.key"]

    def test_of_many_that_make_it_at_once_all_have_the_same(self, settings: Settings) -> None:
        ids: list[str] = []
        threads = [threading.Thread(target=lambda: ids.append(Vault.of(settings).key_id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(ids), len(set(ids))) == (8, 1)

    def test_what_the_file_has_sealed_is_read_when_a_key_is_given(self, settings: Settings) -> None:
        sealed = Vault.of(settings).seal(SecretStr(CANARY))
        given = Settings(data_dir=settings.data_dir, secret_key=SecretStr(f"{NEW}, {OLD}"))
        vault = Vault.of(given)
        assert vault.open(sealed).get_secret_value() == CANARY
        assert vault.key_id == Vault([NEW]).key_id
        assert len(vault.older) == 2

    def test_a_given_key_makes_no_file(self, settings: Settings) -> None:
        Vault.of(Settings(data_dir=settings.data_dir, secret_key=SecretStr(NEW)))
        assert list(settings.data_dir.iterdir()) == []


class TestVerbs:
    def test_put_read_delete(self, database: Database) -> None:
        vault = Vault([OLD])
        with database.writing() as session:
            row, is_new = secrets.put(session, vault, "me", "hub", SecretStr("first"))
            assert is_new
            made = row.created_at
        with database.writing() as session:
            row, is_new = secrets.put(session, vault, "me", "hub", SecretStr(CANARY))
            assert not is_new
            assert row.updated_at > made
        assert read(database, vault) == CANARY
        with database.reading() as session:
            stored = session.execute(text("SELECT * FROM secrets")).all()
        assert CANARY not in str(stored)
        with database.writing() as session:
            secrets.delete(session, "me", "hub")
        with database.reading() as session, pytest.raises(Missing):
            secrets.find(session, "me", "hub")

    def test_someone_elses_is_absent(self, sqlite_database: Database) -> None:
        put(sqlite_database, Vault([OLD]), owner="stranger")
        with sqlite_database.reading() as session:
            assert secrets.listed(session, "me") == []
            with pytest.raises(Missing):
                secrets.find(session, "me", "hub")

    def test_ours_are_in_no_list(self, sqlite_database: Database) -> None:
        vault = Vault([OLD])
        for name in ("webhook/wh_1", "b", "a"):
            put(sqlite_database, vault, name)
        with sqlite_database.reading() as session:
            assert [row.name for row in secrets.listed(session, "me")] == ["a", "b"]
            with pytest.raises(Missing):
                secrets.find(session, "me", "webhook/wh_1")

    def test_one_in_use_stays(self, sqlite_database: Database) -> None:
        put(sqlite_database, Vault([OLD]))
        with sqlite_database.writing() as session:
            session.add(Webhook(id=new_id("wh"), owner="me", url="https://x", events=[], secret="hub"))
        with sqlite_database.writing() as session, pytest.raises(Conflict) as caught:
            secrets.delete(session, "me", "hub")
        assert caught.value.code == "secret_in_use"

    def test_not_without_end(self, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(secrets, "MOST_SECRETS", 2)
        vault = Vault([OLD])
        put(sqlite_database, vault, "a")
        put(sqlite_database, vault, "b")
        put(sqlite_database, vault, "b")
        with pytest.raises(Conflict):
            put(sqlite_database, vault, "c")


class TestRotation:
    def test_from_the_old_key_to_the_new_one(self, database: Database) -> None:
        put(database, Vault([OLD]))
        both = Vault([NEW, OLD])
        assert read(database, both) == CANARY
        assert secrets.rotate(database, both) == 1
        assert secrets.rotate(database, both) == 0
        assert read(database, Vault([NEW])) == CANARY
        with pytest.raises(StorageFailure):
            read(database, Vault([OLD]))

    def test_what_is_damaged_keeps_nothing_else_back(self, sqlite_database: Database) -> None:
        put(sqlite_database, Vault([OLD]), "a")
        put(sqlite_database, Vault([OLD]), "b")
        with sqlite_database.writing() as session:
            session.scalars(select(Secret).where(Secret.name == "a")).one().sealed = "gAAAA"
        assert secrets.rotate(sqlite_database, Vault([NEW, OLD])) == 1
        assert read(sqlite_database, Vault([NEW]), "b") == CANARY

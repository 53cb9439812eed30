"""Transactions: what is seen, what is kept, what happens after a commit; on SQLite and on PostgreSQL."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from models import migrations
from models.database import Database, after_commit, db_now
from models.settings import Settings
from models.tables import Key, Table


def key(name: str) -> Key:
    return Key(id=f"key_{name}", owner="default", scopes=["read"], public_id=name[:8], secret_sha256="0" * 64)


class TestTransactions:
    def test_leaving_the_block_commits(self, database: Database) -> None:
        with database.writing() as session:
            session.add(key("one"))
        with database.reading() as session:
            assert session.get(Key, "key_one") is not None

    def test_an_error_rolls_back(self, database: Database) -> None:
        with pytest.raises(RuntimeError), database.writing() as session:
            session.add(key("one"))
            session.flush()
            raise RuntimeError
        with database.reading() as session:
            assert session.get(Key, "key_one") is None

    def test_after_commit_only_after_a_commit(self, database: Database) -> None:
        called: list[str] = []
        with database.writing() as session:
            after_commit(session, lambda: called.append("first"))
            assert not called
        assert called == ["first"]
        with pytest.raises(RuntimeError), database.writing() as session:
            after_commit(session, lambda: called.append("second"))
            raise RuntimeError
        with database.writing():
            pass
        assert called == ["first"]

    def test_times_are_utc_and_aware(self, database: Database) -> None:
        with database.writing() as session:
            session.add(key("one"))
        with database.reading() as session:
            row = session.get_one(Key, "key_one")
            assert row.created_at.utcoffset().total_seconds() == 0  # type: ignore[union-attr]

    def test_the_clock_goes_on_inside_a_transaction(self, database: Database) -> None:
        with database.reading() as session:
            first = session.scalar(select(db_now()))
            time.sleep(0.05)
            second = session.scalar(select(db_now()))
        assert first is not None
        assert second is not None
        assert 0.04 < second - first < 5
        assert abs(first - time.time()) < 5


class TestSqlite:
    @pytest.fixture
    def database(self, settings: Settings, sqlite_file: Path) -> Iterator[Database]:
        shutil.copy(sqlite_file, settings.data_dir / "limbeck.db")
        database = Database(settings.database)
        yield database
        database.close()

    def test_a_reader_never_waits_for_a_writer(self, database: Database) -> None:
        with database.writing() as session:
            session.add(key("one"))
            session.flush()
            began = time.monotonic()
            with database.reading() as reader:
                assert reader.scalar(select(func.count()).select_from(Key)) == 0
            assert time.monotonic() - began < 1

    def test_a_second_writer_waits(self, database: Database) -> None:
        """With the driver's own deferred transactions it would read first, and then lose or fail."""
        inside, order = threading.Event(), []

        def other() -> None:
            inside.wait()
            with database.writing() as session:
                assert session.scalar(select(func.count()).select_from(Key)) == 1
                order.append("second")

        thread = threading.Thread(target=other)
        thread.start()
        with database.writing() as session:
            session.add(key("one"))
            session.flush()
            inside.set()
            time.sleep(0.3)
            order.append("first")
        thread.join(5)
        assert order == ["first", "second"]

    def test_the_promised_pragmas(self, database: Database) -> None:
        with database.reading() as session:
            found = {
                name: session.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


class TestSchema:
    def test_the_migrations_make_the_tables(self, database: Database) -> None:
        assert migrations.is_current(database)
        with database.reading() as session:
            for name, table in Table.metadata.tables.items():
                assert session.scalar(select(func.count()).select_from(table)) == 0, name

    def test_to_upgrade_twice_changes_nothing(self, database: Database) -> None:
        migrations.upgrade(database)
        assert migrations.is_current(database)

    def test_another_database_is_refused(self) -> None:
        with pytest.raises(ValueError, match="sqlite:// or postgresql://"):
            Database("mysql://localhost/x")

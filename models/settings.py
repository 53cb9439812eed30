"""This process's environment: `LIMBECK_*`, read once at an entry point, frozen, and handed down.

Nothing below an entry point reads the environment. A job's choices are in its spec, never here.
"""

from pathlib import Path

from pydantic import Field, SecretStr, computed_field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where this process keeps things and how patient it is. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="LIMBECK_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path("limbeck-data"), description="database, artifacts, caches and keys live below it")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data folder")
    broker_url: str = Field("", description="Celery broker (redis://, redis+socket://); empty: no broker, workers poll")
    artifacts_url: str = Field("", description="fsspec URL (s3://bucket/prefix); empty: a folder in the data folder")
    models_dir: Path | None = Field(None, description="`file:` references resolve below it; only the operator fills it")
    secret_key: SecretStr | None = Field(
        None,
        description="encrypts secrets: 32 characters or more; several, newest first, separated by commas; "
        "none: the data folder's secret.key, which is made. Not needed by workers",
    )

    lease_ttl: float = Field(30.0, gt=0, description="a job whose worker is silent for so long is taken over")
    sweep_interval: float = Field(
        5.0, gt=0, description="how often expired leases are reaped and waiting jobs rung again"
    )
    drain_timeout: float = Field(30.0, gt=0, description="how long a stopping worker waits for its checkpoint")
    slots: int = Field(1, ge=1, le=64, description="jobs that this worker trains at once")
    device: str = Field("auto", pattern="^(auto|cpu|gpu)$", description="which queue this worker serves")
    cache_bytes: int = Field(
        20 * 1024**3, ge=0, description="budget of the teacher and signal cache; oldest use goes first"
    )

    max_body_bytes: int = Field(2 * 1024**2, ge=1024, description="limit of a JSON body")
    max_upload_bytes: int = Field(1024**3, ge=1024, description="limit of an uploaded dataset or teacher")
    max_rows: int = Field(5_000_000, ge=1, description="rows of one dataset")
    max_text_chars: int = Field(100_000, ge=1, description="characters of one input of /predict")
    max_predict_inputs: int = Field(1024, ge=1, description="inputs of one /predict call")
    predict_queue: int = Field(256, ge=1, description="inputs that wait at once before /predict answers 429")
    student_memory_bytes: int = Field(
        2 * 1024**3, ge=1, description="budget of loaded students; least recently used go"
    )
    max_queued_jobs: int = Field(10_000, ge=1, description="jobs that one owner may have waiting")
    allowed_hosts: list[str] = Field(default=["*"], description="Host headers that are answered")
    egress_allow: str = Field(
        "", description="hosts and networks, separated by commas, that may be called though they are not public"
    )
    egress_http: bool = Field(default=False, description="webhooks may be called without TLS")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'limbeck.db'}"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def artifacts(self) -> str:
        return self.artifacts_url or f"file://{self.data_dir.resolve() / 'artifacts'}"

    @property
    def heartbeat_interval(self) -> float:
        return self.lease_ttl / 6

    @property
    def self_fence_after(self) -> float:
        """Without a successful heartbeat for so long an attempt ends its own trainer: before anyone else may claim."""
        return self.lease_ttl * 0.8

    @property
    def models_folder(self) -> Path:
        return (self.models_dir or self.data_dir / "models").resolve()

    @property
    def jobs_folder(self) -> Path:
        """Where attempts work: `jobs/<job id>/attempts/<n>/`. Private to workers; gone when the job has ended."""
        return self.data_dir.resolve() / "jobs"

    @property
    def secret_key_file(self) -> Path:
        return self.data_dir.resolve() / "secret.key"

    @property
    def cache_folder(self) -> Path:
        return self.data_dir.resolve() / "cache"

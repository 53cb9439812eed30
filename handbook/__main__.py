"""`python -m handbook DIRECTORY` writes the generated pages there. `make docs` calls it before it builds the site."""

import sys
import tempfile
from pathlib import Path

from app.main import create_app
from handbook import api, specs
from models.settings import Settings
from models.specs import DeploymentSpec, JobSpec


def pages() -> dict[str, str]:
    """Each generated page by its file's name."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_dir=Path(folder), database_url="", broker_url="", artifacts_url=""))
        document = app.openapi()
        app.state.database.close()
    return {
        "api.md": api.page(document),
        "job-spec.md": specs.page("The job spec, field by field", JobSpec),
        "deployment-spec.md": specs.page("The deployment, field by field", DeploymentSpec),
    }


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (directory / name).write_text(page, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

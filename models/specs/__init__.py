"""What may be asked: the job spec and its parts.

`parse_job` turns a JSON document into a `JobSpec`, or raises `Invalid` with every problem at once. `resolve` expands
its short forms into a `ResolvedSpec`, which has only `stages[].phases[]`, is stored with the job, and is what runs.
Everything is frozen, and a field that is not known is an error.

The contract is larger than this version. What is named in it but cannot run yet is declared with `Reserved` or
`not_yet` and refused with the code `not_available_yet`: never ignored in silence.
"""

from models.specs.base import MAX_LAYERS, MAX_LENGTH, Reserved, Spec, not_yet
from models.specs.data import DatasetSpec, SplitByColumn, SplitByDataset, SplitByShare
from models.specs.deployments import Auto, Canary, Capture, DeploymentSpec, Fallback, Shadow, Traffic
from models.specs.gates import GateSpec
from models.specs.jobs import (
    Evaluation,
    Export,
    JobSpec,
    Promote,
    ResolvedSpec,
    ResolvedStage,
    Resources,
    SecretName,
    Stage,
    Url,
    Webhook,
)
from models.specs.methods import FitNets, Hinton, Method, MiniLM, Phase, TinyBERT, WithAttentionTransfer
from models.specs.mismatches import FEATURES
from models.specs.objectives import (
    AttentionScores,
    AttentionTransfer,
    Embeddings,
    FeatureObjective,
    HardLabels,
    HiddenStates,
    LogitDistance,
    Objective,
    OutputObjective,
    Relations,
    SoftTargets,
)
from models.specs.parsing import parse_job, problems, resolve
from models.specs.schedules import FineTune, Schedule
from models.specs.students import FreshStudent, PretrainedStudent, Student, StudentFromTeacher
from models.specs.tasks import (
    QuestionAnswering,
    Task,
    Text2Text,
    TextClassification,
    TextGeneration,
    TextRegression,
    TokenClassification,
)
from models.specs.teachers import ApiTeacher, LocalTeacher, RecordedTeacher, SelfTeacher, Teacher

__all__ = [
    "FEATURES",
    "MAX_LAYERS",
    "MAX_LENGTH",
    "ApiTeacher",
    "AttentionScores",
    "AttentionTransfer",
    "Auto",
    "Canary",
    "Capture",
    "DatasetSpec",
    "DeploymentSpec",
    "Embeddings",
    "Evaluation",
    "Export",
    "Fallback",
    "FeatureObjective",
    "FineTune",
    "FitNets",
    "FreshStudent",
    "GateSpec",
    "HardLabels",
    "HiddenStates",
    "Hinton",
    "JobSpec",
    "LocalTeacher",
    "LogitDistance",
    "Method",
    "MiniLM",
    "Objective",
    "OutputObjective",
    "Phase",
    "PretrainedStudent",
    "Promote",
    "QuestionAnswering",
    "RecordedTeacher",
    "Relations",
    "Reserved",
    "ResolvedSpec",
    "ResolvedStage",
    "Resources",
    "Schedule",
    "SecretName",
    "SelfTeacher",
    "Shadow",
    "SoftTargets",
    "Spec",
    "SplitByColumn",
    "SplitByDataset",
    "SplitByShare",
    "Stage",
    "Student",
    "StudentFromTeacher",
    "Task",
    "Teacher",
    "Text2Text",
    "TextClassification",
    "TextGeneration",
    "TextRegression",
    "TinyBERT",
    "TokenClassification",
    "Traffic",
    "Url",
    "Webhook",
    "WithAttentionTransfer",
    "not_yet",
    "parse_job",
    "problems",
    "resolve",
]

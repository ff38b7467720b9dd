"""Images, predictions, artifacts; models, versions, replicas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    # op.f: the name is complete. Without it the naming convention would be applied to it once more.
    op.create_table(
        "images",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("filename", sa.String(), nullable=True),
        sa.Column("mime_type", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("storage_key", sa.String(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )
    op.create_index("ix_images_owner_created_at", "images", ["owner", "created_at"])
    op.create_index("ix_images_owner_sha256", "images", ["owner", "sha256"])
    op.create_index("ix_images_storage_key", "images", ["storage_key"])

    op.create_table(
        "model_replicas",
        sa.Column("process_id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'loading', 'unloaded', 'failed')", name=op.f("ck_model_replicas_state")),
        sa.PrimaryKeyConstraint("process_id", "owner", "name", "version", name="pk_model_replicas"),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("manifest", JSON, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("metrics", JSON, nullable=False),
        sa.Column("lineage", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_versions"),
        sa.UniqueConstraint("owner", "name", "version", name="uq_model_versions_owner_name_version"),
    )
    op.create_index("ix_model_versions_location", "model_versions", ["location"])
    op.create_index(
        "uq_model_versions_active",
        "model_versions",
        ["owner", "name"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )

    op.create_table(
        "models",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("desired", sa.String(), nullable=False),
        sa.Column("unavailable_reason", sa.String(), nullable=True),
        sa.Column("task", sa.String(), nullable=True),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("desired IN ('auto', 'loaded', 'unloaded')", name=op.f("ck_models_desired")),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("owner", "name", name="uq_models_owner_name"),
    )
    op.create_table(
        "registry_revision",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_registry_revision_single")),
        sa.PrimaryKeyConstraint("id", name="pk_registry_revision"),
    )
    op.execute("INSERT INTO registry_revision (id, revision) VALUES (1, 0)")
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("parameters", JSON, nullable=False),
        sa.Column("result", JSON, nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("top_class", sa.String(), nullable=True),
        sa.Column("top_confidence", sa.Float(), nullable=True),
        sa.Column("queue_ms", sa.Float(), nullable=False),
        sa.Column("inference_ms", sa.Float(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('succeeded', 'failed')", name=op.f("ck_predictions_status")),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_predictions_image_id_images", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
    )
    op.create_index("ix_predictions_image_id", "predictions", ["image_id"])
    op.create_index("ix_predictions_owner_created_at", "predictions", ["owner", "created_at"])
    op.create_index("ix_predictions_owner_model_name_created_at", "predictions", ["owner", "model_name", "created_at"])
    op.create_index("ix_predictions_owner_task_created_at", "predictions", ["owner", "task", "created_at"])

    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prediction_id", sa.String(length=36), nullable=True),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("storage_key", sa.String(), nullable=False),
        sa.Column("mime_type", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["prediction_id"], ["predictions.id"], name="fk_artifacts_prediction_id_predictions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_prediction_id", "artifacts", ["prediction_id"])
    op.create_index("ix_artifacts_storage_key", "artifacts", ["storage_key"])


def downgrade() -> None:
    for table in (
        "artifacts",
        "predictions",
        "images",
        "registry_revision",
        "models",
        "model_versions",
        "model_replicas",
    ):
        op.drop_table(table)

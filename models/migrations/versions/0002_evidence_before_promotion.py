"""evidence before promotion

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op


revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('arm_counts',
    sa.Column('deployment_id', sa.String(length=40), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('arm', sa.String(length=16), nullable=False),
    sa.Column('process', sa.String(length=40), nullable=False),
    sa.Column('student_id', sa.String(length=40), nullable=False),
    sa.Column('calls', sa.BigInteger(), nullable=False),
    sa.Column('inputs', sa.BigInteger(), nullable=False),
    sa.Column('errors', sa.BigInteger(), nullable=False),
    sa.Column('compared', sa.BigInteger(), nullable=False),
    sa.Column('agreed', sa.BigInteger(), nullable=False),
    sa.Column('latency', sa.JSON(), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['deployment_id'], ['deployments.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('deployment_id', 'version', 'arm', 'process')
    )
    op.create_table('predictions',
    sa.Column('id', sa.String(length=40), nullable=False),
    sa.Column('owner', sa.String(length=64), nullable=False),
    sa.Column('deployment_id', sa.String(length=40), nullable=False),
    sa.Column('student_id', sa.String(length=40), nullable=False),
    sa.Column('arm', sa.String(length=16), nullable=False),
    sa.Column('input', sa.JSON(), nullable=False),
    sa.Column('answer', sa.JSON(), nullable=False),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.Column('label', sa.JSON(), nullable=True),
    sa.Column('labelled_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['deployment_id'], ['deployments.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('predictions', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_predictions_expires_at'), ['expires_at'], unique=False)
        batch_op.create_index('predictions_of_deployment', ['deployment_id', 'id'], unique=False)

    with op.batch_alter_table('deployment_changes', schema=None) as batch_op:
        batch_op.add_column(sa.Column('gate', sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column('traffic', sa.JSON(), server_default='{}', nullable=False))

    with op.batch_alter_table('deployments', schema=None) as batch_op:
        batch_op.add_column(sa.Column('traffic', sa.JSON(), server_default='{}', nullable=False))

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('rerun_of', sa.String(length=40), nullable=True))

    with op.batch_alter_table('students', schema=None) as batch_op:
        batch_op.add_column(sa.Column('teacher_artifact', sa.String(length=200), nullable=True))
        batch_op.create_index(batch_op.f('ix_students_teacher_artifact'), ['teacher_artifact'], unique=False)



def downgrade() -> None:
    with op.batch_alter_table('students', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_students_teacher_artifact'))
        batch_op.drop_column('teacher_artifact')

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_column('rerun_of')

    with op.batch_alter_table('deployments', schema=None) as batch_op:
        batch_op.drop_column('traffic')

    with op.batch_alter_table('deployment_changes', schema=None) as batch_op:
        batch_op.drop_column('traffic')
        batch_op.drop_column('gate')

    with op.batch_alter_table('predictions', schema=None) as batch_op:
        batch_op.drop_index('predictions_of_deployment')
        batch_op.drop_index(batch_op.f('ix_predictions_expires_at'))

    op.drop_table('predictions')
    op.drop_table('arm_counts')

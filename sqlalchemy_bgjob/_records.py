"""What BGJob does with records."""

from typing import cast

from .models import MinuteMixin, Models, Recording, RecordMixin


class HasRecords:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about records."""

    models: Models

    @property
    def Record(self) -> type[RecordMixin]:  # noqa: N802 - it is a class
        """The mapped class of records; it is there with ``records=True``."""
        return cast(type[RecordMixin], self._recording().Record)

    @property
    def Minute(self) -> type[MinuteMixin]:  # noqa: N802
        """The mapped class of what workers have counted; it is there with ``records=True``."""
        return cast(type[MinuteMixin], self._recording().Minute)

    def _recording(self) -> Recording:
        recording = self.models.recording
        if recording is None:
            raise AttributeError(
                "this BGJob keeps no records: make it with BGJob(..., records=True), and run "
                "`sqlalchemy-bgjob migrate --records` or alembic revision --autogenerate"
            )
        return recording

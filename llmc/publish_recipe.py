"""`publish` of a recipe: where a build that keeps its limits goes when it is done."""

from __future__ import annotations

from pydantic import Field, field_validator

from llmc.recipe_section import Section, as_value_error


class PublishTo(Section):
    """The repository on the hub that the artifact goes to, as by `llmc publish`. Where it goes decides nothing of what
    is built.
    """

    repo: str = Field(description="OWNER/NAME; it is created where it does not exist")
    private: bool | None = Field(
        default=None, description="who sees it; default: a new repository is private, an old one stays as it is"
    )
    branch: str | None = Field(
        default=None, description="the branch that it goes to and stays on; default: main, by a pull request"
    )

    @field_validator("repo")
    @classmethod
    def _is_repository(cls, repo: str) -> str:
        from llmc.publish import require_place

        as_value_error(lambda: require_place(repo))
        return repo

    @field_validator("branch")
    @classmethod
    def _is_branch(cls, branch: str | None) -> str | None:
        from llmc.publish import require_place

        as_value_error(lambda: require_place("me/model", branch))
        return branch

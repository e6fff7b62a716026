"""Operations on jobs: create, settle, cancel, retry, replay."""

"""FastAPI and procrastinate: a route defers a job, which is a committed row. As a program: creates its tables."""

import asyncio
import logging
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from procrastinate import App, PsycopgConnector

tasks = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_DATABASE_URL"]))


@tasks.task(queue="webhooks")
async def handle(payload):
    """Never run here: the bench measures accepting."""


@asynccontextmanager
async def lifespan(_app):
    async with tasks.open_async():
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks/replicate", status_code=202)
async def receive(request: Request):
    return {"id": await handle.defer_async(payload=await request.json())}


async def create_tables():
    async with tasks.open_async():
        await tasks.schema_manager.apply_schema_async()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of procrastinate, that this program is not a worker
    asyncio.run(create_tables())

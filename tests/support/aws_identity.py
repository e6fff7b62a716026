"""The services that hand out temporary AWS credentials: STS, SSO, and the agent of a container, on one local port."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

ACCESS_KEY, SECRET_KEY, EXPIRES = "ASIATEMPORARY", "secret-of-a-session", "2099-01-01T00:00:00Z"


class IdentityServer:
    """
    Returns temporary credentials whose session token names the request: `AssumeRoleWithWebIdentity:TOKEN`,
    `AssumeRole`, `sso:TOKEN`, `container:TOKEN`.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        action = form["Action"][0]
        token = f"{action}:{form['WebIdentityToken'][0]}" if "WebIdentityToken" in form else action
        keys = f"<AccessKeyId>{ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>"
        keys += f"<SessionToken>{token}</SessionToken><Expiration>{EXPIRES}</Expiration>"
        user = "<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn></AssumedRoleUser>"
        result = f"<{action}Result><Credentials>{keys}</Credentials>{user}</{action}Result>"
        self._send(f"<{action}Response>{result}</{action}Response>", "text/xml")

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/federation/credentials":
            token = f"sso:{self.headers['x-amz-sso_bearer_token']}"
            keys = {"accessKeyId": ACCESS_KEY, "secretAccessKey": SECRET_KEY, "sessionToken": token}
            self._send(json.dumps({"roleCredentials": {**keys, "expiration": 4070908800000}}), "application/json")
        else:
            token = f"container:{self.headers['Authorization']}"
            keys = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": token, "Expiration": EXPIRES}
            self._send(json.dumps(keys), "application/json")

    def _send(self, text: str, content_type: str) -> None:
        self.send_response_only(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        pass

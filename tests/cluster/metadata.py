"""Two parts of EC2's instance metadata: the notice of a spot machine's end, and the rights of its role.

    metadata.py ADDRESS FILE [ROLE]

While FILE exists, its content is the notice; see
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "token-of-this-session"
_ROLES = "/latest/meta-data/iam/security-credentials/"
_RIGHTS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "of-the-role",
    "SecretAccessKey": "of-the-role",
    "Token": "of-the-role",
    "LastUpdated": "2026-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}


class Metadata(BaseHTTPRequestHandler):
    """Answers as version 2 of the service does: only with a token."""

    notice: Path
    role: str

    def do_PUT(self) -> None:
        """Give out a token."""
        self._answer(200 if self.path == "/latest/api/token" else 404, TOKEN)

    def do_GET(self) -> None:
        """Give the notice, if there is one."""
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice.exists():
            self._answer(200, self.notice.read_text())
        elif self.path == "/latest/meta-data/instance-id":
            self._answer(200, "i-0123456789abcdef0")
        elif self.role and self.path == _ROLES:
            self._answer(200, self.role)
        elif self.role and self.path == f"{_ROLES}{self.role}":
            self._answer(200, json.dumps(_RIGHTS))
        else:
            self._answer(404, "")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    Metadata.notice, Metadata.role = Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
    ThreadingHTTPServer((sys.argv[1], 80), Metadata).serve_forever()

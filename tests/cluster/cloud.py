"""An EC2 to test against: moto's server, with what moto leaves out.

Images that are named by a parameter (`resolve:ssm:…`) are looked up, an unknown one is refused, and
spot capacity can be gone.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REGION = "us-east-1"
_accounts = itertools.count(1)


class Cloud:
    """One for a test, in this process.

    Args:
        images: The image of each public parameter.
        address: Where to listen.

    Attributes:
        spot: Whether there is spot capacity.
        refused: How many requests for spot instances found none.
    """

    def __init__(self, images: Mapping[str, str], address: str = "127.0.0.1") -> None:
        self.images, self.spot, self.refused = images, True, 0
        self._account = f"{next(_accounts):012}"  # all in this process that runs moto is one state
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(address, 0, self._answer, threaded=True)
        self.url = f"http://{address}:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Cloud:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def settings(self) -> dict[str, str]:
        """The environment in which every client comes here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self, service: str) -> Any:
        """A boto3 client of a service."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name=REGION,
        )

    def instances(self) -> list[dict[str, Any]]:
        """Every instance that was ever launched, the first one first."""
        answer = self.client("ec2").describe_instances()
        found = [i for reservation in answer["Reservations"] for i in reservation["Instances"]]
        return sorted(found, key=lambda instance: instance["LaunchTime"])

    def running(self) -> list[dict[str, Any]]:
        """Those that cost."""
        states = ("pending", "running", "stopping", "stopped")
        return [i for i in self.instances() if i["State"]["Name"] in states]

    def use_network(self, cidr: str) -> str:
        """Takes every network away and makes one; its instances' numbers go up from 4."""
        ec2 = self.client("ec2")
        for subnet in ec2.describe_subnets()["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        vpc = ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        zone = f"{REGION}a"
        answer = ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)
        return str(answer["Subnet"]["SubnetId"])

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self._account
        form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
        if environ["REQUEST_METHOD"] == "POST" and form:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
            call = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            if call.get("Action") == "RunInstances":
                if refusal := self._refusal(call):
                    start_response("400 Bad Request", [("Content-Type", "text/xml")])
                    return [refusal]
                _, _, parameter = call["ImageId"].partition("resolve:ssm:")
                call["ImageId"] = self.images.get(parameter, call["ImageId"])
                body = urlencode(call).encode()
            environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return self._moto(environ, start_response)  # type: ignore[no-any-return]

    def _refusal(self, call: dict[str, str]) -> bytes | None:
        """EC2's answer to a launch that cannot be."""
        image = call["ImageId"].removeprefix("resolve:ssm:")
        if image not in {*self.images, *self.images.values()}:
            return _error("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        if call.get("InstanceMarketOptions.MarketType") == "spot" and not self.spot:
            self.refused += 1
            return _error("InsufficientInstanceCapacity", "There is no Spot capacity available.")
        return None


def _error(code: str, message: str) -> bytes:
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        "</Errors><RequestID>1</RequestID></Response>"
    ).encode()

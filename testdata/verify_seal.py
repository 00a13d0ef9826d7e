#!/usr/bin/env python3
"""A second implementation of docs/SPEC-SEAL.md, in Python, by hand.

usage: verify_seal.py VECTOR.json...

For each vector it prints a line of JSON: its name, and the code of the verdict
("" for accepted). Accepted seals are also given to securesystemslib's DSSE
verifier, with the same keys and threshold; "dsse" says what that found.

Nothing here is a translation of the Go code: it was written from the
specification, with `cryptography` for signatures and hashlib for the tree.
"""

import base64
import hashlib
import json
import re
import sys

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib import dsse, exceptions
from securesystemslib.signer import SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/firmseal/firmseal/firmware-release/v1"
MAX_INT = 2**53 - 1
TEST, PRODUCTION = "test", "production"


class Refused(Exception):
    def __init__(self, code, why=""):
        super().__init__(code, why)
        self.code, self.why = code, why


def sha256(b):
    return hashlib.sha256(b).digest()


# Strict JSON (section "Strict JSON").


class Malformed(Exception):
    pass


def strict_json(data, limit):
    if len(data) > limit:
        raise Malformed("too large")

    def pairs(items):
        out = dict(items)
        if len(out) != len(items):
            raise Malformed("duplicate member")
        return out

    def number(text):
        return Number(text)

    def constant(text):
        raise Malformed(text)

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_int=number, parse_float=number, parse_constant=constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        raise Malformed(str(e))
    check_tree(value, 1)
    if not isinstance(value, dict):
        raise Malformed("not an object")
    return value


class Number:
    def __init__(self, text):
        self.text = text


def check_tree(v, depth):
    if isinstance(v, str):
        try:
            v.encode("utf-8")
        except UnicodeEncodeError:
            raise Malformed("unpaired surrogate")
    if not isinstance(v, (dict, list)):
        return
    if depth > 16:
        raise Malformed("too deep")
    for k in v.keys() if isinstance(v, dict) else []:
        check_tree(k, depth)
    for x in v.values() if isinstance(v, dict) else v:
        check_tree(x, depth + 1)


def need(ok, why):
    if not ok:
        raise Malformed(why)


def string(o, name):
    need(isinstance(o.get(name), str), name)
    return o[name]


def boolean(o, name):
    need(isinstance(o.get(name), bool), name)
    return o[name]


def integer(o, name, most=MAX_INT):
    v = o.get(name)
    need(isinstance(v, Number) and re.fullmatch(r"0|[1-9][0-9]{0,15}", v.text), name)
    need(int(v.text) <= most, name)
    return int(v.text)


def obj(o, name):
    need(isinstance(o.get(name), dict), name)
    return o[name]


def array(o, name, most, kind):
    v = o.get(name)
    need(isinstance(v, list) and len(v) <= most and all(isinstance(x, kind) for x in v), name)
    return v


def b64(s):
    need(re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", s), "base64")
    try:
        raw = base64.b64decode(s, validate=True)
    except ValueError as e:
        raise Malformed(str(e))
    need(base64.b64encode(raw).decode() == s, "base64 is not canonical")
    return raw


HEX = re.compile(r"[0-9a-f]{64}")


def digest(s):
    need(HEX.fullmatch(s), "digest")
    return s


def name(s):
    need(re.fullmatch(r"[!-~]{1,128}", s), "name")
    return s


def control(c, allowed=""):
    return (ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F) and c not in allowed


def text(s):
    need(1 <= len(s.encode()) <= 512 and not any(control(c) for c in s), "text")
    return s


SEMVER = re.compile(
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)


def version(s):
    m = SEMVER.fullmatch(s)
    need(m and len(s) <= 128, "version")
    pre = m.group(4)
    key = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")] if pre else [(2,)]
    return tuple(int(m.group(i)) for i in (1, 2, 3)), key


# Keys and signatures.


def seal_key(spki):
    try:
        pub = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("TRUST.ROOT_MALFORMED", "key")
    again = pub.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if again != spki:
        raise Refused("TRUST.ROOT_MALFORMED", "key encoding")
    if isinstance(pub, ed25519.Ed25519PublicKey):
        return pub, "ed25519", "ed25519"
    if isinstance(pub, ec.EllipticCurvePublicKey):
        if pub.curve.name == "secp256r1":
            return pub, "ecdsa", "ecdsa-sha2-nistp256"
        if pub.curve.name == "secp384r1":
            return pub, "ecdsa", "ecdsa-sha2-nistp384"
        if pub.curve.key_size < 256:
            raise Refused("ALG.WEAK", pub.curve.name)
    if isinstance(pub, rsa.RSAPublicKey) and (pub.key_size < 2048 or pub.public_numbers().e < 65537):
        raise Refused("ALG.WEAK", "RSA")
    raise Refused("ALG.UNSUPPORTED", type(pub).__name__)


def signature_holds(pub, message, sig):
    try:
        if isinstance(pub, ed25519.Ed25519PublicKey):
            pub.verify(sig, message)
        else:
            h = hashes.SHA256() if pub.curve.name == "secp256r1" else hashes.SHA384()
            pub.verify(sig, message, ec.ECDSA(h))
        return True
    except InvalidSignature:
        return False


# Documents.


class Root:
    def __init__(self, data):
        try:
            self.read(data)
        except Malformed as e:
            raise Refused("TRUST.ROOT_MALFORMED", str(e))

    def read(self, data):
        d = strict_json(data, 64 << 10)
        need(string(d, "format") == "firmseal-trustroot/v1", "format")
        only(d, "format version keys threshold emergencyThreshold log products")
        need(integer(d, "version") >= 1, "version")
        self.threshold, self.emergency = integer(d, "threshold", 2**31 - 1), integer(d, "emergencyThreshold", 2**31 - 1)
        raw = array(d, "keys", 64, dict)
        need(raw, "keys")
        self.log = None
        if "log" in d:
            self.log = obj(d, "log")
            only(self.log, "origin key required")
            text(string(self.log, "origin")), boolean(self.log, "required")
            self.log_key = note_key(string(self.log, "key"))
        self.products = [name(p) for p in array(d, "products", 256, str)] if "products" in d else None
        need(self.products is None or self.products, "products")
        self.keys = {}
        for k in raw:
            only(k, "name environment spki")
            env, spki = string(k, "environment"), b64(string(k, "spki"))
            name(string(k, "name"))
            need(env in (TEST, PRODUCTION), "environment")
            keyid = sha256(spki).hex()
            pub = seal_key(spki)
            need(keyid not in self.keys, "key twice")
            self.keys[keyid] = (env, *pub)
        need(1 <= self.threshold <= self.emergency, "threshold")
        for env in (TEST, PRODUCTION):
            n = sum(1 for k in self.keys.values() if k[0] == env)
            need(n == 0 or self.emergency <= n, "threshold out of reach")


def only(o, names):
    need(set(o) <= set(names.split()), "unknown member")


def note_key(vkey):
    parts = vkey.split("+", 2)
    need(len(parts) == 3 and parts[0] and not re.search(r"\s", parts[0]), "log key")
    raw = b64(parts[2])
    need(len(raw) == 33 and raw[0] == 1, "log key algorithm")
    keyhash = sha256(parts[0].encode() + b"\n" + raw)[:4]
    need(re.fullmatch(r"[0-9a-fA-F]{8}", parts[1]) and bytes.fromhex(parts[1]) == keyhash, "log key hash")
    return parts[0], keyhash, ed25519.Ed25519PublicKey.from_public_bytes(raw[1:])


def pae(kind, body):
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(body), body)


def envelope(data):
    d = strict_json(data, 512 << 10)
    kind, payload = string(d, "payloadType"), b64(string(d, "payload"))
    sigs = {}
    for s in array(d, "signatures", 32, dict):
        keyid, sig = digest(string(s, "keyid")), b64(string(s, "sig"))
        need(keyid not in sigs and 1 <= len(sig) <= 512, "signature")
        sigs[keyid] = sig
    need(sigs, "no signature")
    return kind, payload, sigs


def statement(payload):
    d = strict_json(payload, 256 << 10)
    if (string(d, "_type"), string(d, "predicateType")) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise Refused("SEAL.TYPE_UNKNOWN")
    subjects = []
    for s in array(d, "subject", 2, dict):
        n = string(s, "name")
        need(1 <= len(n.encode()) <= 255 and n not in (".", ".."), "file name")
        need(not any(control(c) or c in "/\\" for c in n), "file name")
        subjects.append((n, digest(string(obj(s, "digest"), "sha256"))))
    need(subjects and len({n for n, _ in subjects}) == len(subjects), "subject")
    p = obj(d, "predicate")
    name(string(p, "product")), name(string(p, "format"))
    if "variant" in p and string(p, "variant"):
        name(p["variant"])
    hw = [name(h) for h in array(p, "hardwareIds", 64, str)]
    need(hw and len(set(hw)) == len(hw), "hardwareIds")
    version(string(p, "version"))
    integer(p, "securityCounter")
    if "minimumVersion" in p and string(p, "minimumVersion"):
        version(p["minimumVersion"])
    for dep in array(p, "dependencies", 32, dict) if "dependencies" in p else []:
        name(string(dep, "name")), version(string(dep, "minimumVersion"))
    need(string(p, "environment") in (TEST, PRODUCTION), "environment")
    boolean(p, "emergency"), boolean(p, "bytesUnseen")
    created = string(p, "created")
    need(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created, re.ASCII) and created >= "1970", "created")
    try:
        __import__("datetime").datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError as e:
        raise Malformed(str(e))
    request = obj(p, "request")
    text(string(request, "id")), digest(string(request, "sha256"))
    text(string(p, "requester")), digest(string(p, "policy"))
    for k in array(p, "signedWith", 16, str):
        digest(k)
    if "buildId" in p and string(p, "buildId"):
        text(p["buildId"])
    meta = obj(p, "metadata") if "metadata" in p else {}
    need(len(meta) <= 64, "metadata")
    for k in meta:
        v = string(meta, name(k))
        need(len(v.encode()) <= 1024 and not any(control(c, "\n\t") for c in v), "metadata")
    return subjects, p


# The log.


def parse_proof(data):
    need(len(data) <= 256 << 10, "too large")

    def line():
        nonlocal data
        head, sep, data = data.partition(b"\n")
        need(sep, "ends within a line")
        try:
            return head.decode("ascii")
        except UnicodeDecodeError as e:
            raise Malformed(str(e))

    need(line() == "c2sp.org/tlog-proof@v1", "header")
    extra, l = None, line()
    if l.startswith("extra "):
        extra, l = b64(l[6:]), line()
        need(len(extra) <= 65535, "extra")
    need(l.startswith("index "), "index")
    index = decimal(l[6:])
    path = []
    while l := line():
        path.append(b64(l))
        need(len(path[-1]) == 32 and len(path) <= 63, "hash")
    need(1 <= len(data) <= 64 << 10, "checkpoint")
    return extra, index, path, data


def decimal(s):
    need(re.fullmatch(r"0|[1-9][0-9]{0,15}", s, re.ASCII) and int(s) <= MAX_INT, "decimal")
    return int(s)


def open_checkpoint(raw, origin, key):
    keyname, keyhash, pub = key
    try:
        note = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Malformed(str(e))
    body, sep, sigs = note.rpartition("\n\n")
    need(sep and sigs.endswith("\n"), "not a note")
    body += "\n"
    held = False
    for l in sigs[:-1].split("\n"):
        m = re.fullmatch("— ([^ ]+) ([A-Za-z0-9+/=]+)", l)
        need(m, "signature line")
        blob = b64(m.group(2))
        if m.group(1) == keyname and blob[:4] == keyhash:
            need(signature_holds(pub, body.encode(), blob[4:]), "note signature")
            held = True
    need(held, "no signature by the log")
    lines = body[:-1].split("\n")
    need(len(lines) >= 3 and lines[0] == origin and all(lines[3:]), "origin")
    root = b64(lines[2])
    need(len(root) == 32, "root")
    return decimal(lines[1]), root


def root_from_path(index, size, leaf_hash, path):
    """RFC 9162, section 2.1.3.2."""
    need(index < size, "index")
    fn, sn, r = index, size - 1, leaf_hash
    for p in path:
        need(sn != 0, "path too long")
        if fn & 1 or fn == sn:
            r = sha256(b"\x01" + p + r)
            while fn & 1 == 0 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = sha256(b"\x01" + r + p)
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "path too short")
    return r


def open_proof(data, root):
    extra, index, path, checkpoint = coded("LOG.PROOF_MALFORMED", parse_proof, data)
    if extra is None:
        raise Refused("LOG.PROOF_MALFORMED", "no entry")
    size, want = coded("LOG.CHECKPOINT_UNTRUSTED", open_checkpoint, checkpoint, root.log["origin"], root.log_key)
    got = coded("LOG.PROOF_INVALID", root_from_path, index, size, sha256(b"\x00" + extra), path)
    if got != want:
        raise Refused("LOG.PROOF_INVALID")
    return coded("LOG.LEAF_MALFORMED", leaf, extra)


def leaf(data):
    d = strict_json(data, 65535)
    need(integer(d, "v") >= 1 and string(d, "type"), "type")
    integer(d, "time"), string(d, "actor")
    for n in "record request key policy decision rule input output statement seal_key result code subject".split():
        need(n not in d or isinstance(d[n], str), n)
    for n in ("resumed", "bytes_unseen"):
        need(n not in d or isinstance(d[n], bool), n)
    if "attempt" in d:
        integer(d, "attempt", 2**31 - 1)
    for i in array(d, "inputs", 65535, dict) if "inputs" in d else []:
        [string(i, n) for n in ("slot", "alg", "kind", "sha256")]
    return d


def coded(code, f, *args):
    try:
        return f(*args)
    except Malformed as e:
        raise Refused(code, str(e))


# The verdict (section "Verification").


def verify(v):
    def part(n):
        return base64.b64decode(v[n]) if v.get(n) else b""

    root = Root(part("trustRoot"))
    if not part("seal"):
        raise Refused("SEAL.MISSING")
    if len(part("seal")) > 512 << 10:
        raise Refused("SEAL.TOO_LARGE")
    kind, payload, sigs = coded("SEAL.MALFORMED", envelope, part("seal"))
    if kind != PAYLOAD_TYPE:
        raise Refused("SEAL.TYPE_UNKNOWN")
    message, valid, broken = pae(kind, payload), [], False
    for keyid, sig in sigs.items():
        if keyid in root.keys:
            if signature_holds(root.keys[keyid][1], message, sig):
                valid.append(keyid)
            else:
                broken = True
    if not valid:
        raise Refused("SEAL.INVALID_SIGNATURE" if broken else "SEAL.UNTRUSTED_KEY")
    subjects, p = coded("SEAL.MALFORMED", statement, payload)
    env = p["environment"]
    if env != (TEST if v.get("unsafeTest") else PRODUCTION):
        raise Refused("POLICY.ENVIRONMENT")
    threshold = root.emergency if p["emergency"] else root.threshold
    counted = [k for k in valid if root.keys[k][0] == env]
    if len(counted) < threshold:
        raise Refused("SEAL.THRESHOLD" if counted else "POLICY.ENVIRONMENT")
    if root.products is not None and p["product"] not in root.products:
        raise Refused("TRUST.PRODUCT_FOREIGN")

    if root.log is not None:
        if v.get("proof") is None:
            if root.log["required"]:
                raise Refused("LOG.PROOF_MISSING")
        else:
            check_leaf(open_proof(part("proof"), root), payload, subjects, p)

    if v.get("product") and v["product"] != p["product"]:
        raise Refused("IMG.PRODUCT_MISMATCH")
    if v.get("hardwareId") and v["hardwareId"] not in p["hardwareIds"]:
        raise Refused("IMG.HW_INCOMPATIBLE")
    if v.get("device"):
        check_device(p, v["device"])
    if v.get("signature") is not None:
        if len(subjects) < 2 or sha256(part("signature")).hex() != subjects[1][1]:
            raise Refused("IMG.SIGNATURE_MISMATCH")
    image, announced = part("image"), v.get("announced", 0)
    if len(image) < announced:
        raise Refused("IMG.TRUNCATED")
    if announced and len(image) > announced or sha256(image).hex() != subjects[0][1]:
        raise Refused("IMG.HASH_MISMATCH")
    return root, env, threshold


def check_leaf(l, payload, subjects, p):
    want = {
        "v": 1, "type": "sign.outcome", "result": "sealed", "statement": sha256(payload).hex(), "request": p["request"]["id"],
        "record": p["request"]["sha256"], "policy": p["policy"], "output": subjects[-1][1], "bytes_unseen": p["bytesUnseen"],
    }
    if len(subjects) == 2:
        want["input"] = subjects[0][1]
    got = {**l, "v": int(l["v"].text), "bytes_unseen": l.get("bytes_unseen", False)}
    if any(got.get(k) != w for k, w in want.items()):
        raise Refused("LOG.PROOF_OTHER_RELEASE")


def check_device(p, device):
    mine, theirs = device["securityCounter"], int(p["securityCounter"].text)
    if theirs < mine:
        raise Refused("ROLLBACK.DENIED")
    if p["emergency"] and theirs == mine:
        raise Refused("ROLLBACK.EMERGENCY")
    if not device.get("version"):
        if p.get("minimumVersion"):
            raise Refused("ROLLBACK.DEVICE_VERSION")
        return
    running = coded("ROLLBACK.DEVICE_VERSION", version, device["version"])
    if not p["emergency"] and version(p["version"]) < running:
        raise Refused("ROLLBACK.VERSION_ORDER")
    if p.get("minimumVersion") and running < version(p["minimumVersion"]):
        raise Refused("ROLLBACK.MINIMUM_VERSION")


def second_opinion(v, root, env, threshold):
    """The same seal, keys and threshold in securesystemslib's hands."""
    keys = []
    for keyid, (environment, pub, keytype, scheme) in root.keys.items():
        if environment == env:
            if keytype == "ed25519":
                public = pub.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
            else:
                public = pub.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
            keys.append(SSlibKey(keyid, keytype, scheme, {"public": public}))
    try:
        accepted = dsse.Envelope.from_dict(json.loads(base64.b64decode(v["seal"]))).verify(keys, threshold)
    except exceptions.VerificationError as e:
        return str(e)
    return "%d keys" % len(accepted)


def main():
    for file in sys.argv[1:]:
        with open(file, encoding="utf-8") as f:
            v = json.load(f)
        out = {"name": v["name"], "code": ""}
        try:
            root, env, threshold = verify(v)
            out["dsse"] = second_opinion(v, root, env, threshold)
        except Refused as e:
            out["code"], out["why"] = e.code, e.why
        print(json.dumps(out))


main()

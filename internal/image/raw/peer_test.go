package raw

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/image"
	"github.com/firmseal/firmseal/internal/image/imagetest"
	"github.com/firmseal/firmseal/internal/peertest"
)

// opensslArgs are the arguments to check or make a signature with id. sign and
// verify differ in one word.
func opensslArgs(t *testing.T, id alg.ID, signing bool, key, sig, file string) []string {
	t.Helper()
	spec, err := alg.Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Kind == alg.Message {
		if signing {
			return []string{"pkeyutl", "-sign", "-rawin", "-inkey", key, "-out", sig, "-in", file}
		}
		return []string{"pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", key, "-sigfile", sig, "-in", file}
	}
	args := []string{"dgst", "-" + strings.ToLower(strings.ReplaceAll(spec.Hash.String(), "-", ""))}
	if spec.PSS {
		args = append(args, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sigopt", "rsa_mgf1_md:sha256")
	}
	if signing {
		return append(args, "-sign", key, "-out", sig, file)
	}
	return append(args, "-verify", key, "-signature", sig, file)
}

// TestPeerOpenssl: each of the two signs, the other verifies, and both refuse
// a changed file; for every scheme and encoding.
func TestPeerOpenssl(t *testing.T) {
	t.Parallel()
	tool := peertest.Tool(t, "openssl")
	run := func(t *testing.T, args ...string) (string, bool) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput()
		return strings.TrimSpace(string(out)), err == nil
	}
	for _, kt := range alg.KeyTypes() {
		for _, id := range alg.For(kt) {
			t.Run(string(id), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				write := func(name string, b []byte) string {
					p := filepath.Join(dir, name)
					if err := os.WriteFile(p, b, 0o600); err != nil {
						t.Fatal(err)
					}
					return p
				}
				s, pub := imagetest.TestKey(t, kt, 0)
				pub.Alg = id
				arts, err := New().ExportTrust([]image.PublicMaterial{pub}, nil)
				if err != nil {
					t.Fatal(err)
				}
				pubFile := write("pub.pem", arts[0].Data)
				pkcs8, err := x509.MarshalPKCS8PrivateKey(s)
				if err != nil {
					t.Fatal(err)
				}
				keyFile := write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
				file := write("fw.bin", firmware)
				changed := slices.Clone(firmware)
				changed[len(changed)-1] ^= 1
				changedFile := write("changed.bin", changed)

				coord := coordinate(kt)
				for _, enc := range []string{encDER, encRaw, encBase64, encBase64Raw} {
					o := image.Options(fmt.Sprintf(`{"encoding":%q}`, enc))
					target := image.Profile{Verifier: "openssl", Options: image.Options(fmt.Sprintf(`{"encoding":%q,"alg":%q}`, enc, id))}

					// Ours, for openssl, which reads binary DER.
					ours := sign(t, s, pub, image.Bytes(firmware), o)
					bin := ours
					if enc == encBase64 || enc == encBase64Raw {
						plain, ok := run(t, "base64", "-d", "-A", "-in", write("ours.b64", ours), "-out", filepath.Join(dir, "ours.bin"))
						if !ok {
							t.Fatalf("%s: openssl does not read our base64: %s", enc, plain)
						}
						if bin, err = os.ReadFile(filepath.Join(dir, "ours.bin")); err != nil {
							t.Fatal(err)
						}
					}
					if coord > 0 && (enc == encRaw || enc == encBase64Raw) {
						if len(bin) != 2*coord {
							t.Fatalf("%s: r‖s has %d bytes", enc, len(bin))
						}
						if bin, err = alg.DERFromRaw(bin); err != nil {
							t.Fatal(err)
						}
					}
					sigFile := write("ours.sig", bin)
					if out, ok := run(t, opensslArgs(t, id, false, pubFile, sigFile, file)...); !ok {
						t.Errorf("%s: openssl refuses ours: %s", enc, out)
					}
					out, ok := run(t, opensslArgs(t, id, false, pubFile, sigFile, changedFile)...)
					if ok || !strings.Contains(out, "Verification") && !strings.Contains(out, "Failure") {
						t.Errorf("%s: openssl takes a changed file: %s", enc, out)
					}

					// openssl's, for us.
					theirFile := filepath.Join(dir, "their.sig")
					if out, ok := run(t, opensslArgs(t, id, true, keyFile, theirFile, file)...); !ok {
						t.Fatalf("openssl does not sign: %s", out)
					}
					their, err := os.ReadFile(theirFile)
					if err != nil {
						t.Fatal(err)
					}
					if coord > 0 && (enc == encRaw || enc == encBase64Raw) {
						if their, err = alg.RawECDSA(their, coord); err != nil {
							t.Fatal(err)
						}
					}
					if enc == encBase64 || enc == encBase64Raw {
						their = []byte(base64.StdEncoding.EncodeToString(their))
					}
					v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(their, pub), target)
					if err != nil || !v.Valid || !v.Accepted {
						t.Errorf("%s: we refuse openssl's: %v, %v", enc, v.Refusal(), err)
					}
					v, err = New().Verify(t.Context(), image.Bytes(changed), trust(their, pub), target)
					if err != nil || v.Valid || v.Accepted {
						t.Errorf("%s: we take a changed file: %+v, %v", enc, v, err)
					}
				}
				if kt == alg.Ed25519 {
					their, err := os.ReadFile(filepath.Join(dir, "their.sig"))
					if ours := sign(t, s, pub, image.Bytes(firmware), nil); err != nil || !bytes.Equal(their, ours) {
						t.Errorf("Ed25519 is deterministic, and yet: %x, %x, %v", their, ours, err)
					}
				}
			})
		}
	}
}

// TestPeerOpensslSalt: openssl's own default salt for PSS is the longest, which
// the device refuses, and so do we.
func TestPeerOpensslSalt(t *testing.T) {
	t.Parallel()
	tool := peertest.Tool(t, "openssl")
	s, pub := imagetest.TestKey(t, alg.RSA2048, 0)
	dir := t.TempDir()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	key, file, sig := filepath.Join(dir, "key.pem"), filepath.Join(dir, "fw.bin"), filepath.Join(dir, "sig")
	for name, b := range map[string][]byte{key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), file: firmware} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), tool, "dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sign", key, "-out", sig, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(sig)
	if err != nil {
		t.Fatal(err)
	}
	v, err := New().Verify(t.Context(), image.Bytes(firmware), trust(b, pub), image.Profile{Options: image.Options(`{"alg":"rsa2048-pss-sha256"}`)})
	if err != nil || v.Valid || v.Accepted {
		t.Errorf("a salt of 222 bytes: %+v, %v", v, err)
	}
}

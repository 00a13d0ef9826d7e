package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/client"
	"github.com/firmseal/firmseal/internal/problem"
	"github.com/firmseal/firmseal/internal/server"
	"github.com/firmseal/firmseal/internal/telemetry"
)

func pemOf(spki []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
}

// confirm lets a person type the name of what is about to end. Without a
// terminal only --yes will do.
func (a *app) confirm(yes bool, name, what string) error {
	if yes {
		return nil
	}
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return problem.New(problem.Usage, "this needs a confirmation").Seen("%s", what).WithHint("add --yes")
	}
	fmt.Fprintf(a.stderr, "%s.\ntype %s to go on: ", what, name)
	line, _ := bufio.NewReader(a.stdin).ReadString('\n') // an early end is a no
	if strings.TrimSpace(line) != name {
		return problem.New(problem.Usage, "not confirmed; nothing was done")
	}
	return nil
}

type initCmd struct {
	Dir         string `arg:"" optional:"" help:"Directory to make the workspace in." default:"."`
	Origin      string `help:"Origin of the log, as seal.example.com/firmware." placeholder:"NAME"`
	Database    string `help:"sqlite:FILE or postgres://…; default: SQLite in the workspace." placeholder:"URL"`
	SecondPlace string `name:"second-place" help:"File for the log's last checkpoint, outside the workspace, best on another disk." placeholder:"FILE"`
	Passphrase  bool   `help:"Protect soft keys by a passphrase instead of an identity file."`
}

type initialised struct {
	Workspace   string `json:"workspace"`
	Dir         string `json:"dir"`
	Origin      string `json:"origin"`
	LogKey      string `json:"log_vkey"`
	SecondPlace string `json:"second_place"`
	Identity    string `json:"identity,omitempty"`
}

func (c *initCmd) Run(a *app) error {
	dir := a.g.Workspace
	if dir == "" {
		dir = filepath.Join(c.Dir, server.Dir)
	}
	out, err := a.initWorkspace(server.InitOptions{Dir: dir, Origin: c.Origin, Database: c.Database, SecondPlace: c.SecondPlace, Identity: a.g.Identity}, c.Passphrase)
	if err != nil {
		return err
	}
	return a.show("Workspace", out, func(w io.Writer) {
		fmt.Fprintf(w, "ok    workspace %s in %s\n", out.Workspace, out.Dir)
		fmt.Fprintf(w, "log           %s\n", out.Origin)
		fmt.Fprintf(w, "second place  %s   (keep it when you restore a backup; put it on another disk)\n", out.SecondPlace)
		if out.Identity != "" {
			fmt.Fprintf(w, "identity      %s   (opens the soft keys; back it up apart from them)\n", out.Identity)
		}
		fmt.Fprintln(w, "next  firmseal key create NAME --environment test --product PRODUCT --format FORMAT")
		fmt.Fprintln(w, "      firmseal policy example > firmseal-policy.yaml && firmseal policy apply firmseal-policy.yaml")
	})
}

func (a *app) initWorkspace(o server.InitOptions, passphrase bool) (initialised, error) {
	if passphrase || a.g.PassFD >= 0 {
		o.Passphrase = a.passphrase
	}
	opts := a.options(o.Dir, slog.New(slog.DiscardHandler))
	opts.Identity = ""
	c, err := server.Init(a.ctx, o, opts)
	if err != nil {
		return initialised{}, err
	}
	return initialised{Workspace: c.Workspace, Dir: o.Dir, Origin: c.Origin, LogKey: c.LogKey, SecondPlace: c.SecondPlace, Identity: c.Identity}, nil
}

type serveCmd struct {
	Listen  string `help:"Address to listen on." default:"127.0.0.1:8650" placeholder:"HOST:PORT"`
	TLSCert string `name:"tls-cert" help:"Certificate chain, PEM." placeholder:"FILE"`
	TLSKey  string `name:"tls-key" help:"Its private key, PEM." placeholder:"FILE"`
	LogText bool   `name:"log-text" help:"Log lines for people instead of JSON."`
}

const (
	readHeader = 10 * time.Second // a slow header is a broken or hostile client
	idle       = 2 * time.Minute
	drain      = 30 * time.Second // what a running request is given at shutdown
)

func (c *serveCmd) Run(a *app) error {
	dir, err := a.workspaceDir()
	if err != nil {
		return err
	}
	format := telemetry.JSON
	if c.LogText {
		format = telemetry.Text
	}
	logger := telemetry.NewLogger(a.stderr, format, slog.LevelInfo)
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return problem.New(problem.Usage, "--tls-cert and --tls-key go together")
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return problem.New(problem.Usage, "%q is not an address", c.Listen).WithHint("--listen 127.0.0.1:8650")
	}
	if c.TLSCert == "" && !loopback(host) {
		return problem.New(problem.Usage, "tokens would travel in the clear").
			Seen("--listen %s is not this machine alone, and there is no TLS certificate", c.Listen).WithHint("add --tls-cert FILE --tls-key FILE")
	}
	srv, err := server.Open(a.ctx, a.options(dir, logger))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return errors.Join(problem.New(problem.Unavailable, "the server cannot listen on %s", c.Listen).Seen("%v", err).Because(err), srv.Close())
	}
	scheme := "http"
	hs := &http.Server{Handler: srv.Handler, ReadHeaderTimeout: readHeader, IdleTimeout: idle, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn)}
	if c.TLSCert != "" {
		scheme = "https"
		cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return errors.Join(problem.New(problem.Usage, "the TLS certificate cannot be used").Seen("%v", err), srv.Close())
		}
		hs.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		ln = tls.NewListener(ln, hs.TLSConfig)
	}
	address := scheme + "://" + ln.Addr().String()
	_ = a.show("Server", map[string]string{"url": address, "workspace": srv.Config.Workspace}, func(w io.Writer) {
		fmt.Fprintf(w, "serving workspace %s on %s\n", srv.Config.Workspace, address)
		fmt.Fprintf(w, "api %s/openapi.json   metrics %s/metrics   log %s/log/checkpoint\n", address, address, address)
	})
	ended := make(chan error, 2)
	go func() { ended <- hs.Serve(ln) }()
	go func() { ended <- srv.Wait() }()
	select {
	case <-a.ctx.Done():
		err = nil
	case err = <-ended:
	}
	stop, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	err = errors.Join(err, hs.Shutdown(stop), srv.Close())
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

type statusCmd struct {
	Config bool `help:"Show each setting and where it comes from."`
}

func (c *statusCmd) Run(a *app) error {
	if c.Config {
		return a.showConfig()
	}
	return a.withClient(func(cl *client.Client) error {
		s, err := cl.Status(a.ctx)
		if err != nil {
			return err
		}
		return a.show("Status", s, func(w io.Writer) {
			switch {
			case s.Policy == "":
				fmt.Fprintln(w, "Nothing can be signed yet: no policy is in force.")
			case s.Requests["unknown"] > 0:
				fmt.Fprintf(w, "%d requests wait for a person: a key may have been used and nobody knows.\n", s.Requests["unknown"])
			case !s.Ready:
				fmt.Fprintln(w, "Nothing is signed now: the log does not go on.")
			default:
				fmt.Fprintf(w, "Signing works: %d releases, %d requests under way.\n", s.Releases, s.Requests["queued"]+s.Requests["signing"]+s.Requests["sealing"])
			}
			fmt.Fprintf(w, "The log has %d entries.\n", s.LogSize)
			for _, f := range s.Findings {
				fmt.Fprintf(w, "%-6s  %s\n", f.Severity, f.What)
				if f.Next != "" {
					fmt.Fprintf(w, "next    %s\n", f.Next)
				}
			}
			fmt.Fprintf(w, "\nworkspace %s   database %s   log %s   firmseal %s\n", s.Workspace, s.Database, s.Origin, s.Version)
		})
	})
}

type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// showConfig says which value of each setting holds and where it comes from:
// flag, environment, firmseal.yaml, or default.
func (a *app) showConfig() error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	file, _ := upward("firmseal.yaml")
	pick := func(name, flag, env, fromFile string) setting {
		switch {
		case flag != "" && os.Getenv(env) == flag:
			return setting{name, flag, env}
		case flag != "":
			return setting{name, flag, "flag"}
		case fromFile != "":
			return setting{name, fromFile, file}
		}
		return setting{name, "", "default"}
	}
	list := []setting{
		pick("server", a.g.Server, "FIRMSEAL_SERVER", s.Server),
		pick("token-file", a.g.TokenFile, "FIRMSEAL_TOKEN_FILE", s.TokenFile),
		pick("workspace", a.g.Workspace, "FIRMSEAL_WORKSPACE", s.Workspace),
		pick("identity", a.g.Identity, "FIRMSEAL_IDENTITY", ""),
		pick("profile", "", "", s.Profile),
	}
	if list[2].Value == "" {
		if p, ok := upward(server.Dir); ok {
			list[2] = setting{"workspace", p, "found upward"}
		}
	}
	return a.show("Configuration", map[string]any{"settings": list}, func(w io.Writer) {
		table(w, func(w io.Writer) {
			fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
			for _, s := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, dash(s.Value), s.From)
			}
		})
	})
}

type trustCmd struct {
	Export trustExportCmd `cmd:"" help:"Write the trust root file: seal keys, thresholds, log key."`
}

// exported is what trust export prints.
type exported struct {
	Version   uint64          `json:"version"`
	File      string          `json:"file,omitempty"`
	TrustRoot json.RawMessage `json:"trust_root"`
}

func logOf(t *firmseal.TrustRoot) string {
	if t.Log == nil {
		return "none"
	}
	return t.Log.Origin
}

// bytesOf writes b.
func bytesOf(b []byte) func(w io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(b); return err }
}

type trustExportCmd struct {
	Out string `name:"out" help:"File to write; - for standard output." default:"trustroot.json" placeholder:"FILE"`
}

func (c *trustExportCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		b, err := cl.TrustRoot(a.ctx)
		if err != nil {
			return err
		}
		t, err := firmseal.ParseTrustRoot(b)
		if err != nil {
			return err
		}
		out := exported{Version: t.Version, TrustRoot: b}
		if c.Out != "-" {
			out.File = c.Out
			if err := writeOutput(c.Out, bytesOf(b)); err != nil {
				return err
			}
		}
		return a.show("TrustRoot", out, func(w io.Writer) {
			if c.Out == "-" {
				fmt.Fprintf(w, "%s", b)
				return
			}
			fmt.Fprintf(w, "ok    %s: version %d, %d seal keys, log %s\n", c.Out, t.Version, len(t.Keys), logOf(t))
			fmt.Fprintln(w, "      carry it to where releases are checked by a way that you trust; it holds no secret")
		})
	})
}

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Create a token; its secret is shown once."`
	List   tokenListCmd   `cmd:"" help:"List tokens."`
	Revoke tokenRevokeCmd `cmd:"" help:"Revoke a token."`
}

type tokenCreateCmd struct {
	Name   string        `arg:"" help:"What it is for."`
	Scopes []string      `name:"scope" help:"What it may do; repeat. See firmseal help scopes." required:"" placeholder:"SCOPE"`
	TTL    time.Duration `name:"ttl" help:"How long it is valid." default:"720h"`
}

func (c *tokenCreateCmd) Run(a *app) error {
	if a.g.Quiet {
		return problem.New(problem.Usage, "a token's secret is shown once, and --quiet would drop it").WithHint("leave --quiet out")
	}
	return a.withClient(func(cl *client.Client) error {
		t, err := cl.CreateToken(a.ctx, client.NewToken{Name: c.Name, Scopes: c.Scopes, TTL: int64(c.TTL / time.Second)})
		if err != nil {
			return err
		}
		return a.show("CreatedToken", t, func(w io.Writer) {
			fmt.Fprintln(w, t.Secret)
			a.note("token %s for %s, expires %s; the secret is not shown again", t.ID, strings.Join(t.Scopes, " "), when(t.Expires))
		})
	})
}

type tokenListCmd struct{}

func (c *tokenListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		ts, err := cl.Tokens(a.ctx)
		if err != nil {
			return err
		}
		return a.show("TokenList", client.Page[client.Token]{Items: ts}, func(w io.Writer) {
			if len(ts) == 0 {
				fmt.Fprintln(w, "no tokens yet; make one: firmseal token create NAME --scope SCOPE")
				return
			}
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "TOKEN\tNAME\tSCOPES\tEXPIRES\tREVOKED")
				for _, t := range ts {
					revoked := "-"
					if t.Revoked != 0 {
						revoked = when(t.Revoked)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, strings.Join(t.Scopes, " "), when(t.Expires), revoked)
				}
			})
		})
	})
}

type tokenRevokeCmd struct {
	ID string `arg:"" help:"Token id."`
}

func (c *tokenRevokeCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		t, err := cl.RevokeToken(a.ctx, c.ID)
		if err != nil {
			return err
		}
		return a.show("Token", t, func(w io.Writer) { fmt.Fprintf(w, "ok    token %s (%s) is revoked\n", t.ID, t.Name) })
	})
}

type logCmd struct {
	List    logListCmd    `cmd:"" help:"List log entries: the last ones, or those from an index on."`
	Prove   logProveCmd   `cmd:"" help:"Write the proof that an entry is in the log."`
	Verify  logVerifyCmd  `cmd:"" help:"Verify the whole log, from its first entry."`
	Recover logRecoverCmd `cmd:"" help:"Take the log as it is when its second place was lost. Read docs/SPEC-LOG.md first."`
}

type logListCmd struct {
	Type    string `help:"Only of this type, as sign.attempt." placeholder:"TYPE"`
	Request string `help:"Only of this request." placeholder:"ID"`
	From    *int64 `help:"First entry to look at; default: the last ones, or the first with a filter." placeholder:"N"`
	Limit   int    `help:"How many." default:"50"`
}

func (c *logListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.Leaves(a.ctx, client.LeafQuery{Type: c.Type, Request: c.Request, From: c.From, Limit: c.Limit})
		if err != nil {
			return err
		}
		return a.show("LeafList", p, func(w io.Writer) {
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "ENTRY\tTYPE\tTIME\tACTOR\tABOUT")
				for _, l := range p.Items {
					var v struct {
						Type, Actor, Request, Subject, Result, Decision, Code string
						Time                                                  int64
						Attempt                                               int
					}
					if err := json.Unmarshal(l.Leaf, &v); err != nil {
						fmt.Fprintf(w, "%d\tunreadable\t\t\t%v\n", l.Index, err)
						continue
					}
					about := strings.TrimSpace(strings.Join([]string{v.Subject, v.Request, v.Decision, v.Result, v.Code}, " "))
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", l.Index, v.Type, when(v.Time), v.Actor, strings.Join(strings.Fields(about), " "))
				}
			})
		})
	})
}

// proven is what log prove prints.
type proven struct {
	Index int64  `json:"index"`
	File  string `json:"file,omitempty"`
	Proof string `json:"proof"`
}

type logProveCmd struct {
	Index int64  `arg:"" help:"Entry."`
	Out   string `name:"out" help:"File to write; - for standard output." default:"-" placeholder:"FILE"`
}

func (c *logProveCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		b, err := cl.LeafProof(a.ctx, c.Index)
		if err != nil {
			return err
		}
		out := proven{Index: c.Index, Proof: string(b)}
		if c.Out != "-" {
			out.File = c.Out
			if err := writeOutput(c.Out, bytesOf(b)); err != nil {
				return err
			}
		}
		return a.show("LogProof", out, func(w io.Writer) {
			if c.Out == "-" {
				fmt.Fprintf(w, "%s", b)
				return
			}
			fmt.Fprintf(w, "ok    %s: entry %d\n", c.Out, c.Index)
		})
	})
}

type logVerifyCmd struct{}

func (c *logVerifyCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.CheckLog(a.ctx)
		if err != nil {
			return err
		}
		return a.show("LogCheck", r, func(w io.Writer) {
			fmt.Fprintf(w, "ok    %d entries, root %s; entries, tiles, checkpoint and second place agree\n", r.Size, r.Root)
		})
	})
}

type logRecoverCmd struct {
	Yes bool `help:"Do not ask."`
}

func (c *logRecoverCmd) Run(a *app) error {
	dir, err := a.workspaceDir()
	if err != nil {
		return err
	}
	if err := a.confirm(c.Yes, "recover", "take the log in the database as whole, though nothing outside it can confirm that no entry was lost"); err != nil {
		return err
	}
	r, err := server.RecoverLog(a.ctx, a.options(dir, slog.New(slog.DiscardHandler)), a.localIdentity().Actor)
	if err != nil {
		return err
	}
	return a.show("LogCheck", client.LogCheck{Size: r.Size, Root: r.Root.String(), OK: true}, func(w io.Writer) {
		fmt.Fprintf(w, "ok    the second place is set anew at %d entries, and the log says so\n", r.Size)
	})
}

type versionCmd struct{}

func (c *versionCmd) Run(a *app) error {
	return a.show("Version", map[string]string{"version": version()}, func(w io.Writer) { fmt.Fprintln(w, "firmseal", version()) })
}

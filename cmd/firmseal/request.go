package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/firmseal/firmseal/client"
)

type requestCmd struct {
	List   requestListCmd   `cmd:"" help:"List requests, newest first."`
	Show   requestShowCmd   `cmd:"" help:"Show a request: state, reason, keys, attempts."`
	Resume requestResumeCmd `cmd:"" help:"Let an unknown request use its key once more."`
	Cancel requestCancelCmd `cmd:"" help:"End a request that is not final, and free its version."`
}

type requestListCmd struct {
	State   string `help:"Only those in this state." enum:",queued,signing,sealing,released,denied,failed,unknown" default:""`
	BuildID string `name:"build-id" help:"Only those of this build." placeholder:"ID"`
	Limit   int    `help:"How many." default:"50"`
}

func when(us int64) string { return time.UnixMicro(us).UTC().Format("2006-01-02 15:04:05Z") }

func table(w io.Writer, f func(w io.Writer)) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	f(t)
	_ = t.Flush() // w is standard output; a closed pipe ends the process anyway
}

func (c *requestListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.Requests(a.ctx, client.RequestQuery{State: c.State, BuildID: c.BuildID, Limit: c.Limit})
		if err != nil {
			return err
		}
		return a.show("RequestList", p, func(w io.Writer) {
			if len(p.Items) == 0 {
				fmt.Fprintln(w, "no requests yet; make one: firmseal sign IMAGE")
				return
			}
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "REQUEST\tSTATE\tPRODUCT\tVERSION\tENVIRONMENT\tACTOR\tBUILD\tRELEASE\tCREATED")
				for _, r := range p.Items {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Product, r.Version, r.Environment, r.Actor, dash(r.BuildID), dash(r.Release), when(r.Created))
				}
			})
		})
	})
}

type requestShowCmd struct {
	ID string `arg:"" help:"Request id."`
}

func (c *requestShowCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.Request(a.ctx, c.ID, 0)
		if err != nil {
			return err
		}
		return a.showRequest(r)
	})
}

func (a *app) showRequest(r client.Request) error {
	return a.show("SigningRequest", r, func(w io.Writer) {
		fmt.Fprintf(w, "request %s is %s\n", r.ID, r.State)
		if r.Problem != nil {
			fmt.Fprintf(w, "because  %s\t%s\n", r.Problem.Detail, r.Problem.Code)
			if r.Problem.Why != "" {
				fmt.Fprintf(w, "why      %s\n", r.Problem.Why)
			}
			if r.Problem.Next != "" {
				fmt.Fprintf(w, "next     %s\n", r.Problem.Next)
			}
		}
		fmt.Fprintf(w, "product  %s %s, security counter %d, %s, %s\n", r.Product, r.Version, r.SecurityCounter, r.Environment, r.Format)
		fmt.Fprintf(w, "boards   %s\n", strings.Join(r.HardwareIDs, ", "))
		fmt.Fprintf(w, "asked    %s by %s, profile %s\n", when(r.Created), r.Actor, r.Profile)
		fmt.Fprintf(w, "input    %s, %d bytes, %s\n", r.Input.Name, r.Input.Size, r.Input.SHA256)
		fmt.Fprintf(w, "digest   %s (canonical request)\n", r.Digest)
		fmt.Fprintf(w, "policy   %s\n", r.Policy)
		if r.Output != "" {
			fmt.Fprintf(w, "output   %s\n", r.Output)
		}
		if r.Release != "" {
			fmt.Fprintf(w, "release  %s\n", r.Release)
		}
		for _, k := range r.Keys {
			fmt.Fprintf(w, "key      %s (%s) %s\n", k.Name, k.Role, k.ID)
		}
		for _, t := range r.Attempts {
			resumed := ""
			if t.Resumed {
				resumed = ", resumed by a person"
			}
			fmt.Fprintf(w, "attempt  %d %s %s, key %s%s\n", t.N, t.Purpose, t.State, short(t.KeyID), resumed)
		}
	})
}

type requestResumeCmd struct {
	ID   string        `arg:"" help:"Request id."`
	Wait time.Duration `help:"Wait this long for the signature." default:"60s"`
}

func (c *requestResumeCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.Resume(a.ctx, c.ID)
		if err != nil {
			return err
		}
		if !rests(r.State) && c.Wait > 0 {
			if r, err = cl.Request(a.ctx, c.ID, min(c.Wait, maxPoll)); err != nil {
				return err
			}
		}
		return a.showRequest(r)
	})
}

type requestCancelCmd struct {
	ID string `arg:"" help:"Request id."`
}

func (c *requestCancelCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.Cancel(a.ctx, c.ID)
		if err != nil {
			return err
		}
		return a.showRequest(r)
	})
}

type releaseCmd struct {
	List  releaseListCmd  `cmd:"" help:"List releases, newest first."`
	Show  releaseShowCmd  `cmd:"" help:"Show a release."`
	Fetch releaseFetchCmd `cmd:"" help:"Download a release: image or signature, seal and proof."`
}

type releaseListCmd struct {
	Product string `help:"Only of this product."`
	Limit   int    `help:"How many." default:"50"`
}

func (c *releaseListCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		p, err := cl.Releases(a.ctx, c.Product, "", c.Limit)
		if err != nil {
			return err
		}
		return a.show("ReleaseList", p, func(w io.Writer) {
			if len(p.Items) == 0 {
				fmt.Fprintln(w, "no releases yet")
				return
			}
			table(w, func(w io.Writer) {
				fmt.Fprintln(w, "RELEASE\tPRODUCT\tVERSION\tCOUNTER\tENVIRONMENT\tBOARDS\tCREATED")
				for _, r := range p.Items {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.ID, r.Product, r.Version, r.SecurityCounter, r.Environment, strings.Join(r.HardwareIDs, ","), when(r.Created))
				}
			})
		})
	})
}

type releaseShowCmd struct {
	ID string `arg:"" help:"Release id, or its request's."`
}

func (c *releaseShowCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.Release(a.ctx, c.ID)
		if err != nil {
			return err
		}
		return a.show("Release", r, func(w io.Writer) {
			fmt.Fprintf(w, "release %s: %s %s, security counter %d, %s\n", r.ID, r.Product, r.Version, r.SecurityCounter, r.Environment)
			fmt.Fprintf(w, "boards   %s\nformat   %s\nimage    %s, %d bytes, %s\n", strings.Join(r.HardwareIDs, ", "), r.Format, r.Image.Name, r.Image.Size, r.Image.SHA256)
			if r.Signature != nil {
				fmt.Fprintf(w, "sigfile  %s, %d bytes, %s\n", r.Signature.Name, r.Signature.Size, r.Signature.SHA256)
			}
			fmt.Fprintf(w, "request  %s\nlog      entry %d\nmade     %s\n", r.Request, r.LeafIndex, when(r.Created))
			if r.BuildID != "" {
				fmt.Fprintf(w, "build    %s\n", r.BuildID)
			}
		})
	})
}

type releaseFetchCmd struct {
	ID    string `arg:"" help:"Release id, or its request's."`
	Out   string `name:"out" help:"Where to write the image (detached formats: the signature). The seal and proof go beside it." placeholder:"FILE"`
	Image string `help:"Path of the image, for detached formats: seal and proof go beside it." placeholder:"FILE"`
}

func (c *releaseFetchCmd) Run(a *app) error {
	return a.withClient(func(cl *client.Client) error {
		r, err := cl.Release(a.ctx, c.ID)
		if err != nil {
			return err
		}
		fl, err := a.fetch(cl, r, c.Out, c.Image)
		if err != nil {
			return err
		}
		return a.show("Files", fl, func(w io.Writer) {
			for _, p := range []string{fl.Image, fl.Signature, fl.Seal, fl.Proof} {
				if p != "" {
					fmt.Fprintln(w, p)
				}
			}
		})
	})
}

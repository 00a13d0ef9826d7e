package signing

import (
	"context"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/journal"
	"github.com/firmseal/firmseal/internal/tlog"
)

// CreateToken makes an API token and its leaf. The secret is in the answer and
// nowhere else.
func (s *Service) CreateToken(ctx context.Context, who auth.Identity, name string, scopes []string, ttl time.Duration) (string, auth.Token, error) {
	sc, err := auth.ParseScopes(scopes)
	if err != nil {
		return "", auth.Token{}, err
	}
	var secret string
	var t auth.Token
	err = s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var err error
		if secret, t, err = auth.Create(tx, auth.Spec{By: who, Name: name, Scopes: sc, TTL: ttl}); err != nil {
			return firmseal.Leaf{}, err
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "token.create", Actor: who.Actor, Project: who.Project, Subject: t.ID}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafTokenCreate, Actor: who.Actor, Subject: t.ID, Record: hexSum(auth.Record(t))}, nil
	})
	return secret, t, err
}

// RevokeToken ends a token and those that were made with it, with a leaf for
// each. Revoking a revoked one changes nothing.
func (s *Service) RevokeToken(ctx context.Context, who auth.Identity, id string) (auth.Token, error) {
	var t auth.Token
	var leaves []tlog.Pending
	err := s.db.Update(ctx, func(tx *db.Tx) error {
		var ended []auth.Token
		var err error
		if t, ended, err = auth.Revoke(tx, who, id); err != nil {
			return err
		}
		leaves = nil // of an earlier try of this transaction
		for _, e := range ended {
			if _, err := journal.Append(tx, journal.Event{Kind: "token.revoke", Actor: who.Actor, Project: who.Project, Subject: e.ID}); err != nil {
				return err
			}
			p, err := s.log.Append(tx, firmseal.Leaf{Type: firmseal.LeafTokenRevoke, Actor: who.Actor, Subject: e.ID, Record: hexSum(auth.Record(e))})
			if err != nil {
				return err
			}
			leaves = append(leaves, p)
		}
		return nil
	})
	if err != nil {
		return auth.Token{}, err
	}
	for _, p := range leaves {
		if _, err := s.log.Wait(ctx, p); err != nil {
			return t, err
		}
	}
	return t, nil
}

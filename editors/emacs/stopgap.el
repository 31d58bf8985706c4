;;; stopgap.el --- Checked fills from a diffusion model, through eglot  -*- lexical-binding: t -*-

;; Package-Requires: ((emacs "28.1") (eglot "1.9"))
;; SPDX-License-Identifier: Apache-2.0

;;; Commentary:

;; eglot has no ghost text, so fills come as the last entry of the completion menu (M-x completion-at-point,
;; company, corfu) and as code actions (M-x eglot-code-actions).  In your init file:
;;
;;   (load "/path/to/editors/emacs/stopgap.el")
;;   (add-hook 'python-mode-hook #'eglot-ensure)
;;
;; eglot runs one language server per buffer.  To keep another one in some modes, set `stopgap-modes' before
;; loading this file.

;;; Code:

(require 'eglot)

(defvar stopgap-command '("stopgap" "lsp")
  "How the language server is started.")

(defvar stopgap-modes
  '(python-mode python-ts-mode js-mode js-ts-mode typescript-mode typescript-ts-mode rust-mode rust-ts-mode
    go-mode go-ts-mode java-mode java-ts-mode c-mode c-ts-mode c++-mode c++-ts-mode csharp-mode csharp-ts-mode
    ruby-mode ruby-ts-mode php-mode php-ts-mode sh-mode bash-ts-mode lua-mode lua-ts-mode)
  "Major modes whose buffers eglot gives to stopgap.")

(defvar stopgap-settings nil
  "Settings of the server as a plist of camelCase keywords, e.g. (:inComments t :budgetMs 900).")

(defclass stopgap-server (eglot-lsp-server) ()
  "The language server of stopgap, so that what follows concerns no other.")

(cl-defmethod eglot-initialization-options ((_server stopgap-server))
  "Tell SERVER that `stopgap/input' is understood here."
  (append stopgap-settings '(:input t)))

(cl-defmethod eglot-handle-request ((_server stopgap-server) (_method (eql stopgap/input)) &key prompt)
  "Ask the user for the words of a rewrite with PROMPT; nothing when they quit."
  (condition-case nil (read-string (concat prompt " ")) (quit nil)))

(add-to-list 'eglot-server-programs `(,stopgap-modes . (stopgap-server ,@stopgap-command)))

(defun stopgap--request (method params)
  "Ask the server of this buffer for METHOD with PARAMS."
  (jsonrpc-request (eglot--current-server-or-lose) method params :timeout 120))

(defun stopgap-why ()
  "Say why nothing appeared: the last requests and what became of them."
  (interactive)
  (let ((lines (plist-get (stopgap--request :stopgap/why '(:last 10)) :lines)))
    (with-help-window "*stopgap*"
      (princ (if (seq-empty-p lines) "nothing has been asked yet" (string-join lines "\n"))))))

(defun stopgap--tell-status (method)
  "Ask for METHOD and show the status that comes back."
  (let ((status (stopgap--request method eglot--{})))
    (message "stopgap: %s %s %s" (plist-get status :state) (plist-get status :model) (plist-get status :message))))

(defun stopgap-status ()
  "Show what the daemon is doing, and with which model."
  (interactive)
  (stopgap--tell-status :stopgap/status))

(defun stopgap-pause ()
  "Free the memory of the model, for every editor of this user."
  (interactive)
  (stopgap--tell-status :stopgap/pause))

(defun stopgap-resume ()
  "Take the memory of the model back."
  (interactive)
  (stopgap--tell-status :stopgap/resume))

(provide 'stopgap)
;;; stopgap.el ends here
